"""Weights from files as people have them, against timm's own loading, and inputs against timm's own transforms.

Shape suffixes: B images, H and W pixels, C channels.
"""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from timm.data.transforms_factory import transforms_imagenet_eval

from models.data import CentreCrop, load_images
from models.data.pixels import resize, view
from models.errors import CheckpointError, CorruptCheckpointError, UserError
from models.external import downloaded_model, inputs_of, model_with_weights, read_weights
from models.inputs import to_input

ROOT = Path(__file__).parents[2]
SIZE = 64
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights_of(name, seed=0, **options):
    """Random, but those of a model of this name, norms and running statistics too."""
    torch.manual_seed(seed)
    state = timm.create_model(name, **options).state_dict()
    return {
        key: value + 0.05 * torch.rand_like(value) if value.is_floating_point() else value
        for key, value in state.items()
    }


def some_images():
    torch.manual_seed(1)
    return torch.randn(3, 3, SIZE, SIZE)


def logits(model):
    with torch.no_grad():
        return model.eval()(some_images())


def timms_own(name, file, num_classes, **options):
    """The model as timm itself loads it from a file of trusted origin."""
    overlay = {"file": str(file), "num_classes": num_classes}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes, **options)


def save(file, weights, **around):
    if file.suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save({**around, "state_dict": weights} if around else weights, file)
    return file


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("file", ["m.safetensors", "m.pth", "m.bin"])
def test_a_model_is_the_one_that_timm_loads(tmp_path, name, file):
    path = save(tmp_path / file, weights_of(name, num_classes=7))
    public = model_with_weights(name, path)
    assert torch.equal(logits(public.model), logits(timms_own(name, path, 7)))
    assert public.num_classes == 7
    assert public.params == sum(parameter.numel() for parameter in timm.create_model(name, num_classes=7).parameters())
    assert not public.model.training


def nested(weights, other, how):
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    return {
        "plain": weights,
        "state_dict": {"epoch": 3, "state_dict": weights, "optimizer": {"state": {}}},
        "model": {"model": weights, "args": {"lr": 0.1}},
        "ddp": {"state_dict": prefixed},
        "compiled ddp": {"model": {f"_orig_mod.{key}": value for key, value in prefixed.items()}},
        "ema": {"state_dict": other, "state_dict_ema": weights},
        "model_ema": {"model": other, "model_ema": prefixed},
    }[how]


@pytest.mark.parametrize("how", ["plain", "state_dict", "model", "ddp", "compiled ddp", "ema", "model_ema"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_are_found_where_training_programs_put_them_and_an_average_comes_first(tmp_path, how, zipped):
    weights = weights_of("test_vit")
    torch.save(
        nested(weights, weights_of("test_vit", seed=9), how), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped
    )
    found = read_weights(tmp_path / "m.pt")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_a_head_of_any_number_of_classes_is_taken_from_the_file_and_one_that_is_not_there_is_left_out(tmp_path):
    for num_classes in (0, 3, 1000):
        weights = weights_of("test_convnext", num_classes=num_classes)
        public = model_with_weights("test_convnext", save(tmp_path / f"{num_classes}.pth", weights))
        assert public.num_classes == num_classes
        assert all(torch.equal(value, weights[key]) for key, value in public.model.state_dict().items())


def test_the_names_of_a_published_original_become_timms(tmp_path):
    """As the ConvNeXt of its authors names them; written down here anew."""
    weights = weights_of("test_convnext", num_classes=5)
    published = {}
    for key, value in weights.items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.(\d)", r"downsample_layers.\1.\2", key)
        key = re.sub(r"^stages\.(\d)\.blocks\.(\d)", r"stages.\1.\2", key)
        key = re.sub(r"mlp\.fc(\d)", r"pwconv\1", key).replace("conv_dw", "dwconv")
        key = key.replace("head.fc.", "head.").replace("head.norm.", "norm.")
        published[key] = value
    assert len(published.keys() & weights.keys()) < len(weights) / 2
    public = model_with_weights("test_convnext", save(tmp_path / "m.pth", published, epoch=1))
    assert all(torch.equal(value, weights[key]) for key, value in public.model.state_dict().items())


def test_another_image_size_resamples_positions_as_timm_does(tmp_path):
    path = save(tmp_path / "m.safetensors", weights_of("test_vit", num_classes=4, img_size=96))
    public = model_with_weights("test_vit", path, SIZE)
    assert public.image_size == SIZE
    assert torch.equal(logits(public.model), logits(timms_own("test_vit", path, 4, img_size=SIZE)))


# --- files that are none -------------------------------------------------------------------------------------------


class Planted:
    """What runs a program when a pickle of it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def write_planted(file, target, how):
    planted = {"state_dict": weights_of("test_vit"), "args": Planted(target)}
    if how == "pickle":
        file.write_bytes(pickle.dumps({"a": Planted(target)}, protocol=2))
    else:
        torch.save(planted, file, _use_new_zipfile_serialization=how == "zip")


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_file_that_would_run_a_program_runs_none(tmp_path, how):
    write_planted(tmp_path / "m.pth", tmp_path / "proof", how)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        model_with_weights("test_vit", tmp_path / "m.pth")
    assert not (tmp_path / "proof").exists()
    if how == "pickle":
        pickle.loads((tmp_path / "m.pth").read_bytes())
    else:
        torch.load(tmp_path / "m.pth", weights_only=False)
    assert (tmp_path / "proof").exists()  # so the file would have run it


def test_a_whole_module_is_refused_with_what_it_would_take(tmp_path):
    torch.save(timm.create_model("test_vit"), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth: holds more than tensors \(timm\..* more\)"):
        read_weights(tmp_path / "m.pth")


@pytest.mark.parametrize("file", ["m.safetensors", "m.pth"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_torn_file_is_told(tmp_path, file, keep):
    path = save(tmp_path / file, weights_of("test_vit"))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(CorruptCheckpointError, match=rf"{file}: torn, or no file of weights"):
        model_with_weights("test_vit", path)


@pytest.mark.parametrize("file", ["m.safetensors", "m.bin"])
def test_a_text_is_no_weights(tmp_path, file):
    (tmp_path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(CheckpointError, match=file):
        read_weights(tmp_path / file)


def test_another_models_file_is_told_with_numbers_and_names(tmp_path):
    path = save(tmp_path / "m.pth", weights_of("test_resnet"))
    with pytest.raises(
        CheckpointError,
        match=r"not of timm test_vit: of 78 tensors 78 are not in it: cls_token, .* and 75 more; 92 are only in it",
    ):
        model_with_weights("test_vit", path)


def test_one_tensor_more_or_less_or_of_another_shape_is_told(tmp_path):
    weights = weights_of("test_resnet")
    with pytest.raises(CheckpointError, match=r"1 are not in it: bn1\.weight$"):
        model_with_weights(
            "test_resnet", save(tmp_path / "a.pth", {k: v for k, v in weights.items() if k != "bn1.weight"})
        )
    with pytest.raises(CheckpointError, match=r"1 are only in it: extra$"):
        model_with_weights("test_resnet", save(tmp_path / "b.pth", weights | {"extra": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"1 of another shape: bn1\.weight \(\[3\] there, \[\d+\] here\)"):
        model_with_weights("test_resnet", save(tmp_path / "c.pth", weights | {"bn1.weight": torch.ones(3)}))


def test_other_places_of_weights_are_told(tmp_path):
    torch.save({"student": {"a": torch.ones(1)}, "teacher": {"a": torch.ones(1)}}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"nor under state_dict, model, .* but student, teacher"):
        read_weights(tmp_path / "m.pth")
    torch.save({}, tmp_path / "e.pth")
    with pytest.raises(CheckpointError, match="but nothing"):
        read_weights(tmp_path / "e.pth")
    torch.save([torch.ones(1)], tmp_path / "l.pth")
    with pytest.raises(CheckpointError, match=r"l\.pth"):
        read_weights(tmp_path / "l.pth")
    for name, message in (("m.npz", "end in .safetensors, .pth"), ("no.pth", "cannot be read: No such file")):
        with pytest.raises(CheckpointError, match=message):
            read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_vit.none_such", r"test_vit has no weights 'none_such' \(known: r160_in1k\)"),
        ("vit_tny_patch16_224", "nearest: vit_tiny_patch16_224"),
        ("hf-hub:somebody/model", "no model of this name"),
        ("local-dir:.", "no model of this name"),
    ],
)
def test_names_that_timm_does_not_list_are_refused(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        model_with_weights(name, save(tmp_path / "m.pth", weights_of("test_vit")))
    with pytest.raises(UserError, match=message):
        downloaded_model(name)


# --- what timm downloads -------------------------------------------------------------------------------------------


PRETRAINED = """
from models.errors import UserError
from models.external import downloaded_model
try:
    downloaded_model("test_resnet")
except UserError as error:
    print(error)
public = downloaded_model("test_vit")
print(public.num_classes, public.params, float(sum(p.double().sum() for p in public.model.parameters())))
"""


def test_pretrained_takes_what_was_downloaded_before_and_says_what_to_do_without_internet(tmp_path):
    """In a process whose hub is a folder."""
    weights, revision = weights_of("test_vit"), "0" * 40
    stored = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    (stored / "snapshots" / revision).mkdir(parents=True)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(revision)
    save_file(weights, stored / "snapshots" / revision / "model.safetensors")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PRETRAINED], capture_output=True, text=True, env=environment, check=True
    )
    refused, found = done.stdout.splitlines()
    assert refused.startswith("timm test_resnet: its weights cannot be had: ")
    assert refused.endswith("download them elsewhere and give the file as --checkpoint")
    num_classes, params, total = found.split()
    assert (num_classes, params) == ("1000", str(sum(value.numel() for value in weights.values())))
    assert float(total) == pytest.approx(float(sum(value.double().sum() for value in weights.values())))


def test_a_model_without_published_weights_has_none_to_download():
    assert not timm.get_pretrained_cfg("lcnet_035").has_weights
    with pytest.raises(UserError, match="its weights cannot be had"):
        downloaded_model("lcnet_035")


# --- inputs --------------------------------------------------------------------------------------------------------


def test_training_inputs_are_bit_for_bit_what_they_were():
    for name in ("icons", "landcover"):
        images_BHWC = torch.from_numpy(load_images(name).images_NHWC[:50])
        before_BCHW = images_BHWC.permute(0, 3, 1, 2).to(torch.float32).mul_(2 / 255).sub_(1)
        assert torch.equal(to_input(images_BHWC), before_BCHW.expand(-1, 3, -1, -1))
    images_NHWC = load_images("landcover").images_NHWC[:20]
    fitted = [ImageOps.fit(Image.fromarray(i), (24, 24), method=Image.Resampling.BILINEAR) for i in images_NHWC]
    assert np.array_equal(resize(images_NHWC, 24), np.stack(fitted))


def test_every_channel_has_its_mean_and_deviation():
    mean, std = IMAGENET
    images_BHWC = torch.from_numpy(load_images("landcover").images_NHWC[:20])
    expected_BCHW = (images_BHWC.permute(0, 3, 1, 2) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    assert torch.allclose(to_input(images_BHWC, mean, std), expected_BCHW, atol=1e-6)
    gray_BHWC = images_BHWC[..., :1]
    colour_BHWC = gray_BHWC.expand(-1, -1, -1, 3)
    assert torch.equal(to_input(gray_BHWC, mean, std), to_input(colour_BHWC, mean, std))


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("test_vit", None),
        ("test_efficientnet", None),
        ("dm_nfnet_f0", None),  # squashes
        ("resnet10t", 224),  # has a larger size for tests, and a share for that
        ("resnet10t", None),
        ("volo_d4_448", None),  # a share above 1: black around the image
    ],
)
def test_inputs_are_those_of_timms_transform(name, image_size):
    with torch.device("meta"):
        model = timm.create_model(name)
    inputs = inputs_of(name, model, image_size)
    asked = {} if image_size is None else {"img_size": image_size}
    transform = create_transform(
        **resolve_model_data_config(model, asked, use_test_size=image_size == 224), is_training=False
    )
    image_HWC = np.concatenate(list(load_images("landcover").images_NHWC[:3]), axis=1)[:, :-7]
    ours = to_input(torch.from_numpy(view(image_HWC, inputs.square))[None], inputs.mean, inputs.std)
    assert torch.allclose(ours[0], transform(Image.fromarray(image_HWC)), atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    image_size=st.integers(2, 40),
    share=st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0, 1.15]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]),
    keeps_shape=st.booleans(),
)
def test_a_centre_crop_is_timms_of_any_shape(height, width, image_size, share, interpolation, keeps_shape):
    image_HWC = np.random.default_rng(height * 71 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    crop = CentreCrop(image_size=image_size, share=share, interpolation=interpolation, keeps_shape=keeps_shape)
    transform = transforms_imagenet_eval(
        image_size,
        crop_pct=share,
        crop_mode="center" if keeps_shape else "squash",
        interpolation=interpolation,
        normalize=False,
    )
    assert np.array_equal(view(image_HWC, crop), transform(Image.fromarray(image_HWC)).permute(1, 2, 0).numpy())


def test_a_folders_images_are_cropped_from_their_files_at_full_size(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = rng.integers(0, 256, (50 + number, 70, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    crop = CentreCrop(image_size=32, share=0.875, interpolation="bicubic")
    transform = transforms_imagenet_eval(32, crop_pct=0.875, interpolation="bicubic", normalize=False)
    expected = [transform(Image.open(p)).permute(1, 2, 0).numpy() for p in sorted(tmp_path.glob("*/*.png"))]
    assert np.array_equal(load_images(str(tmp_path), crop).images_NHWC, np.stack(expected))


def test_models_of_other_shapes_of_images_are_refused(tmp_path):
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_sapiens2")
    with pytest.raises(UserError, match="not squares"):
        inputs_of("vit_base_patch16_sapiens2", model, None)
    with torch.device("meta"):
        bordered = timm.create_model("test_vit", pretrained_cfg_overlay={"crop_mode": "border"})
    with pytest.raises(UserError, match="wants images border"):
        inputs_of("test_vit", bordered, None)
