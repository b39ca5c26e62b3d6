"""Small sets of real images in the layouts of the publishers of public tasks.

Each writer takes the root and gives (train, test): (class number, image) of every image, in the order of the layout.
Files are PNG whatever they are called, so that pixels come back as they went in.
"""

import csv
import io
import json
import pickle
import struct
import zipfile
from collections import defaultdict
from functools import lru_cache
from typing import ClassVar

import numpy as np
from PIL import Image
from scipy.io import savemat

from evals.tasks import definition
from models.data import load_images

SIDE = 32


@lru_cache
def coloured():
    return load_images("landcover").images_NHWC


@lru_cache
def grey():
    return load_images("mnist", SIDE).images_NHWC


class Pictures:
    """Real images, a new one each time."""

    def __init__(self, images_NHWC=None):
        self._images_NHWC = coloured() if images_NHWC is None else images_NHWC
        self._next = 0

    def take(self):
        self._next += 1
        return self._images_NHWC[(self._next - 1) % len(self._images_NHWC)]

    def write(self, path):
        """One of them as a file; gives it."""
        image_HWC = self.take()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            Image.fromarray(image_HWC.squeeze()).save(file, "PNG", compress_level=1)
        return image_HWC


def class_names(task, form="class_{:04}"):
    return [form.format(number) for number in range(definition(task).num_classes)]


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def folders(folder, names, pictures, num=1, suffix=".png"):
    """Class folders with `num` images each."""
    return [
        (label, pictures.write(folder / name / f"{i:03}{suffix}"))
        for label, name in enumerate(names)
        for i in range(num)
    ]


# --- lists of files ---------------------------------------------------------------------------------------------------


def pets(root):
    base, pictures, parts = root / "oxford-iiit-pet", Pictures(), []
    for number, part in enumerate(("trainval", "test")):
        names = [f"{name}_of_{number}" for name in class_names("pets")]
        parts.append([(c, pictures.write(base / "images" / f"{name}.jpg")) for c, name in enumerate(names)])
        write_lines(base / "annotations" / f"{part}.txt", [f"{name} {c + 1} 1 1" for c, name in enumerate(names)])
    for path in (base / "images").iterdir():  # the class is what stands before the last underscore
        path.rename(path.with_name(path.name.replace("_of_", "_")))
    for part in ("trainval", "test"):
        path = base / "annotations" / f"{part}.txt"
        path.write_text(path.read_text().replace("_of_", "_"))
    return parts


def dtd(root):
    base, pictures, parts = root / "dtd" / "dtd", Pictures(), []
    for part in ("train", "val", "test"):
        names = [f"{name}/{name}_{part}.jpg" for name in class_names("dtd")]
        parts.append([(c, pictures.write(base / "images" / name)) for c, name in enumerate(names)])
        write_lines(base / "labels" / f"{part}1.txt", names)
    return parts[0] + parts[1], parts[2]


def sun397(root):
    base, pictures, parts = root / "SUN397", Pictures(), []
    classes = [f"/{name[6]}/{name}" for name in class_names("sun397")]
    write_lines(base / "Partitions" / "ClassName.txt", classes)
    for part in ("Training", "Testing"):
        names = [f"{name}/sun_{part}.jpg" for name in classes]
        parts.append([(c, pictures.write(base / name[1:])) for c, name in enumerate(names)])
        write_lines(base / "Partitions" / f"{part}_01.txt", names)
    return parts


def birds(root):
    base, pictures, parts = root / "CUB_200_2011", Pictures(), {0: [], 1: []}
    lists = defaultdict(list)
    for c, name in enumerate(class_names("birds", "{:03}.Bird")):
        lists["classes"].append(f"{c + 1} {name}")
        for is_train in (1, 0):
            number, path = len(lists["images"]) + 1, f"{name}/Bird {c} {is_train}.jpg"
            parts[is_train].append((c, pictures.write(base / "images" / path)))
            lists["images"].append(f"{number} {path}")
            lists["image_class_labels"].append(f"{number} {c + 1}")
            lists["train_test_split"].append(f"{number} {is_train}")
    for name, lines in lists.items():
        write_lines(base / f"{name}.txt", lines)
    return parts[1], parts[0]


def aircraft(root):
    base, pictures, parts = root / "fgvc-aircraft-2013b" / "data", Pictures(), []
    classes = class_names("aircraft", "Boeing {:03}-200")
    write_lines(base / "variants.txt", classes)
    for first, part in ((1000, "trainval"), (2000, "test")):
        parts.append([(c, pictures.write(base / "images" / f"{first + c}.jpg")) for c in range(len(classes))])
        write_lines(base / f"images_variant_{part}.txt", [f"{first + c} {name}" for c, name in enumerate(classes)])
    return parts


def food101(root):
    base, pictures, parts = root / "food-101", Pictures(), []
    classes = class_names("food101")
    write_lines(base / "meta" / "classes.txt", classes)
    for part in ("train", "test"):
        names = [f"{name}/{part}" for name in classes]
        parts.append([(c, pictures.write(base / "images" / f"{name}.jpg")) for c, name in enumerate(names)])
        write_lines(base / "meta" / f"{part}.txt", names)
    return parts


def vtab_lists(root):
    """SVHN as it is passed on with VTAB-1k."""
    base, pictures = root / "vtab-1k" / "svhn", Pictures()
    train = [(i * 7 % 10, pictures.write(base / "images" / "train800val200" / f"{i:06}.jpg")) for i in range(1000)]
    test = [(i % 10, pictures.write(base / "images" / "test" / f"{i:06}.jpg")) for i in range(30)]
    for name, part in (("train800val200", train), ("test", test)):
        write_lines(base / f"{name}.txt", [f"images/{name}/{i:06}.jpg {c}" for i, (c, _) in enumerate(part)])
    return train, test


# --- annotations ------------------------------------------------------------------------------------------------------

CLEVR_NEAREST = {8.0: 0, 8.01: 1, 8.5: 1, 8.7: 2, 9.0: 2, 9.4: 3, 9.9: 4, 10.0: 4, 10.1: 5, 14.0: 5}
KITTI_NEAREST = {7.9: 0, 8.0: 0, 8.1: 1, 20.0: 1, 20.1: 2, 80.0: 2, None: 3}


def _clevr(root, label):
    base, pictures, parts = root / "clevr" / "CLEVR_v1.0", Pictures(), []
    for part in ("train", "val"):
        scenes, found = [], []
        for i in range(40):
            nearest, num = list(CLEVR_NEAREST)[i % 10], 3 + i % 8
            depths = [nearest, *(15.0 + j for j in range(num - 1))]
            name = f"CLEVR_{part}_{i:06}.png"
            scenes.append({"image_filename": name, "objects": [{"pixel_coords": [1, 2, d]} for d in reversed(depths)]})
            found.append((label(nearest, num), pictures.write(base / "images" / part / name)))
        (base / "scenes").mkdir(exist_ok=True)
        (base / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps({"scenes": scenes}))
        parts.append(found)
    return parts


def clevr_count(root):
    return _clevr(root, lambda _, num: num - 3)


def clevr_distance(root):
    return _clevr(root, lambda nearest, _: CLEVR_NEAREST[nearest])


def gtsrb(root):
    base, pictures = root / "gtsrb" / "GTSRB", Pictures()
    names = class_names("gtsrb", "{:05}")
    train = folders(base / "Training", names, pictures, 2, ".ppm")
    test = [(c, pictures.write(base / "Final_Test" / "Images" / f"{c:05}.ppm")) for c in range(len(names))]
    with (root / "gtsrb" / "GT-final_test.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Filename", "Width", "Height", "ClassId"])
        rows.writerows([f"{c:05}.ppm", 32, 32, c] for c, _ in test)
    return train, test


def retinopathy(root):
    base, pictures, rows = root / "retinopathy", Pictures(), []
    train = [(c, pictures.write(base / "train" / f"{c}_left.jpeg")) for c in range(5)]
    write_lines(base / "trainLabels.csv", ["image,level", *(f"{c}_left,{c}" for c in range(5))])
    parts = {"Public": [], "Private": []}
    for usage, part in parts.items():
        for c in (3, 1, 0, 4, 2):
            part.append((c, pictures.write(base / "test" / f"{usage}{c}_right.jpeg")))
            rows.append(f"{usage}{c}_right,{c},{usage}")
    write_lines(base / "retinopathy_solution.csv", ["image,level,Usage", *rows])
    return train + parts["Public"], parts["Private"]


def fungi(root):
    base, pictures, parts = root / "fungi", Pictures(), []
    names = class_names("fungi", "Amanita {}")
    for part in ("train", "val"):
        files = [f"images/{c}/{part}.JPG" for c in range(len(names))]
        parts.append([(c, pictures.write(base / name)) for c, name in enumerate(files)])
        found = {
            "images": [{"id": 900 + c, "file_name": name} for c, name in enumerate(files)],
            "annotations": [{"image_id": 900 + c, "category_id": 7 + c} for c in reversed(range(len(files)))],
            "categories": [{"id": 7 + c, "name": name} for c, name in reversed(list(enumerate(names)))],
        }
        (base / f"{part}.json").write_text(json.dumps(found))
    return parts


def camelyon17(root):
    """Center 2 is tested on; of the others, center 1 and split 1 are for validation."""
    base, pictures, parts = root / "camelyon17_v1.0", Pictures(), {"train": [], "test": [], "left out": []}
    rows = ["," + "patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for i in range(40):
        center, split, tumour = i % 5, int(i % 7 == 0), i // 5 % 2
        name = f"patches/patient_0{i:02}_node_3/patch_patient_0{i:02}_node_3_x_{i}_y_9.png"
        part = "test" if center == 2 else "left out" if center == 1 or split else "train"
        parts[part].append((tumour, pictures.write(base / name)))
        rows.append(f"{i},0{i:02},3,{i},9,{tumour},1,{center},{split}")
    write_lines(base / "metadata.csv", rows)
    return parts["train"], parts["test"]


def iwildcam(root):
    base, pictures, parts, rows = root / "iwildcam_v2.0", Pictures(), defaultdict(list), ["split,location,filename,y"]
    for part in ("train", "val", "test", "id_test"):
        for c in range(182):
            parts[part].append((c, pictures.write(base / "train" / f"{part}{c}.jpg")))
            rows.append(f"{part},3,{part}{c}.jpg,{c}")
    write_lines(base / "metadata.csv", rows)
    return parts["train"], parts["test"]


def fmow(root):
    base, pictures, parts = root / "fmow_v1.1", Pictures(), defaultdict(list)
    names = class_names("fmow")
    kinds = [("train", 2012), ("train", 2014), ("seq", 2010), ("test", 2016), ("test", 2015), ("val", 2017)]
    rows = ["split,category,timestamp,country_code"]
    for c, name in enumerate(names):
        for kind in kinds:
            row = len(rows) - 1
            parts[kind].append((c, pictures.write(base / "images" / f"rgb_img_{row}.png")))
            rows.append(f"{kind[0]},{name},{kind[1]}-12-31T23:59:59Z,DEU")
    write_lines(base / "rgb_metadata.csv", rows)
    return parts[kinds[0]], parts[kinds[3]]


# --- MATLAB files and arrays ------------------------------------------------------------------------------------------


def cars(root):
    base, pictures, parts = root / "stanford_cars", Pictures(), []
    names = class_names("cars", "Car {} Sedan 2012")
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(names, dtype=object)})
    places = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for part, place in places.items():
        parts.append([(c, pictures.write(base / f"cars_{part}" / f"{c:05}.jpg")) for c in range(len(names))])
        rows = np.array(
            [(c + 1, f"{c:05}.jpg") for c in range(len(names))], dtype=[("class", object), ("fname", object)]
        )
        savemat(base / place, {"annotations": rows})
    return parts


def flowers(root):
    base, pictures = root / "flowers-102", Pictures()
    labels = np.arange(3 * 102) % 102 + 1
    images = [(int(c) - 1, pictures.write(base / "jpg" / f"image_{i + 1:05}.jpg")) for i, c in enumerate(labels)]
    first, second, third = np.split(np.arange(1, 307), 3)
    savemat(base / "imagelabels.mat", {"labels": labels})
    savemat(base / "setid.mat", {"trnid": third, "valid": first, "tstid": second})
    return images[204:] + images[:102], images[102:204]


def svhn(root):
    pictures, parts = Pictures(), []
    for name, num in (("train", 40), ("test", 20)):
        part = [((i + 1) % 10, pictures.take()) for i in range(num)]
        parts.append(part)
        y = np.array([[c or 10] for c, _ in part])
        savemat(root / f"{name}_32x32.mat", {"X": np.stack([image for _, image in part], axis=-1), "y": y})
    return parts


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings, in which CIFAR is pickled."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[str] = dispatch[bytes] = save_string


def pickled(value):
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def _cifar_file(path, part, key):
    rows = np.stack([image.transpose(2, 0, 1).reshape(-1) for _, image in part])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickled({"data": rows, key: [c for c, _ in part], "batch_label": "of 5"}))


def cifar10(root):
    base, pictures = root / "cifar-10-batches-py", Pictures()
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    parts = [[(i * 3 % 10, pictures.take()) for i in range(20)] for _ in names]
    for name, part in zip(names, parts, strict=True):
        _cifar_file(base / name, part, "labels")
    (base / "batches.meta").write_bytes(pickled({"label_names": class_names("cifar10")}))
    return [pair for part in parts[:5] for pair in part], parts[5]


def cifar100(root):
    base, pictures = root / "cifar-100-python", Pictures()
    parts = [[(i * 3 % 100, pictures.take()) for i in range(num)] for num in (200, 100)]
    for name, part in zip(("train", "test"), parts, strict=True):
        _cifar_file(base / name, part, "fine_labels")
    (base / "meta").write_bytes(pickled({"fine_label_names": class_names("cifar100"), "coarse_label_names": ["x"]}))
    return parts


def _matrix(path, magic, array):
    sizes = (*array.shape, 1) if array.ndim < 3 else array.shape
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(struct.pack(f"<{2 + len(sizes)}i", magic, array.ndim, *sizes) + array.tobytes())


def _smallnorb(root, label):
    pictures, parts = Pictures(grey()), []
    for name, num in (("5x46789x9x18x6x2x96x96-training", 36), ("5x01235x9x18x6x2x96x96-testing", 18)):
        infos = np.array([[4, i % 9, i % 18 * 2, 3] for i in range(num)], dtype="<i4")
        pairs = np.stack([np.kron(pictures.take()[..., 0], np.ones((3, 3), np.uint8)) for _ in range(2 * num)])
        images = pairs.reshape(num, 2, 96, 96).astype(np.uint8)
        _matrix(root / "smallnorb" / f"smallnorb-{name}-dat.mat", 0x1E3D4C55, images)
        _matrix(root / "smallnorb" / f"smallnorb-{name}-info.mat", 0x1E3D4C54, infos)
        parts.append([(label(i), images[i, 0][..., None]) for i in range(num)])
    return parts


def smallnorb_azimuth(root):
    return _smallnorb(root, lambda i: i % 18)


def smallnorb_elevation(root):
    return _smallnorb(root, lambda i: i % 9)


def dsprites(root, num=80):
    """(images of 0 and 255, orientations, horizontal positions); the test part is drawn."""
    bits = np.stack([np.kron(image[..., 0] > 127, np.ones((2, 2))) for image in grey()[:num]]).astype(np.uint8)
    orientation, x = np.arange(num) % 40, np.arange(num) * 5 % 32
    latents = np.stack([np.zeros(num), np.arange(num) % 3, np.arange(num) % 6, orientation, x, np.arange(num) % 32], 1)
    path = root / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    np.savez_compressed(path, imgs=bits, latents_classes=latents.astype(np.int64))
    return bits[..., None] * np.uint8(255), orientation, x


def corrupted(path, name):
    """The zip file with one member cut short."""
    with zipfile.ZipFile(path) as file:
        members = {member: file.read(member) for member in file.namelist()}
    members[name] = members[name][: len(members[name]) // 2]
    with zipfile.ZipFile(path, "w") as file:
        for member, content in members.items():
            file.writestr(member, content)


PARTED = {
    writer.__name__: writer
    for writer in (
        pets, dtd, sun397, birds, aircraft, food101, clevr_count, clevr_distance, gtsrb, retinopathy, fungi, camelyon17,
        iwildcam, fmow, cars, flowers, svhn, cifar10, cifar100, smallnorb_azimuth, smallnorb_elevation,
    )
}  # fmt: skip
"""Writers of the layouts that say themselves what is for the test, by task."""
