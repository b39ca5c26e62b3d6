"""Fine-tuning under torch-xla is that of the CPU, and no step is compiled anew."""

import numpy as np
import pytest

from tests.xla.runs import AXES, compiled, recipe

pytestmark = [pytest.mark.xla, pytest.mark.xdist_group("xla training")]


class Patches:
    """Real grey textures, as a task has them."""

    def __init__(self):
        from models.data import load_images

        images = load_images("patches", 32)
        self.images_NHWC, self.labels_N = images.images_NHWC, images.labels_N

    def batches(self, index_N, batch_size):
        for start in range(0, len(index_N), batch_size):
            yield self.images_NHWC[index_N[start : start + batch_size]]


def model(family, place):
    import torch

    from models.build import build_model
    from models.prepare import recipe_architecture

    torch.manual_seed(0)
    return build_model(recipe_architecture(recipe(family), 7)).to(place)


def tuned(family, place, num_steps, micro_batch=None):
    """From so many training images on, batches are mixed."""
    from evals.finetune import finetune
    from evals.schedule import FineTune

    settings = FineTune(learning_rates=(0.02,), num_steps=(num_steps,), batch_size=24, flip=True)
    options = {"num_classes": 12, "settings": settings, "seed": 0, "micro_batch": micro_batch}
    patches = Patches()
    index_N = np.resize(np.arange(len(patches.labels_N)), 20_000)
    return finetune(model(family, place), patches, index_N, **options)


@pytest.mark.parametrize("family", AXES)
def test_weights_and_predictions_are_those_of_the_cpu(family):
    import torch

    from models.device import pick_device

    # First there: torch refuses backward passes on devices that it meets after one on the CPU.
    there, here = tuned(family, pick_device().torch_device, 8), tuned(family, "cpu", 8)
    for name, tensor in here.model.state_dict().items():
        # torch-xla's running variances are biased: those of N values are (N - 1) / N of torch's.
        rtol = 0.06 if name.endswith("running_var") else 1e-3
        torch.testing.assert_close(there.model.state_dict()[name].cpu(), tensor, rtol=rtol, atol=1e-4, msg=name)
    images_NHWC = Patches().images_NHWC[:100]
    assert (there.predict_batch(images_NHWC) == here.predict_batch(images_NHWC)).mean() >= 0.98


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_more_steps_are_no_more_programs(micro_batch):
    from models.device import pick_device

    place = pick_device().torch_device
    tuned("vit", place, 6, micro_batch)
    before = compiled()
    fitted = tuned("vit", place, 13, micro_batch)
    assert compiled() == before
    fitted.predict_batch(Patches().images_NHWC[:50])
    after = compiled()
    fitted.predict_batch(Patches().images_NHWC[:7])
    assert compiled() == after


def test_weights_that_are_not_finite_give_a_reason():
    import torch

    from evals.finetune import finetune
    from evals.schedule import FineTune
    from models.device import pick_device

    broken = model("vit", pick_device().torch_device)
    with torch.no_grad():
        broken.patch_embed.proj.weight.mul_(torch.nan)
    settings = FineTune(learning_rates=(0.02,), num_steps=(3,))
    patches = Patches()
    index_N = np.arange(len(patches.labels_N))
    fitted = finetune(broken, patches, index_N, num_classes=12, settings=settings, seed=0)
    assert fitted.reason == "fine-tuning diverged: the loss of step 1 of 3 is not finite (rate 0.02)"
