"""The layouts in which public tasks are held: of publishers and torchvision, tables, class folders, VTAB-1k's lists.

Left out, since tables or class folders hold them as well: DMLab (tfrecords) and Quick, Draw! (npy files of 50 million
drawings).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from evals.tasks.layouts import annotated, arrays, class_folders, lists, matlab, pickles
from evals.tasks.layouts.layout import Layout
from evals.tasks.sources import Source
from evals.tasks.task import Definition
from models.data import hugging_face

_clevr: Final = partial(Layout, folders=("CLEVR_v1.0", "clevr/CLEVR_v1.0"), marks=("scenes", "images"))
_norb: Final = Layout(
    name="smallNORB's binary matrices",
    folders=("smallnorb", "norb-v1.0-small"),
    marks=tuple(f"smallnorb-{part}-{what}.mat" for part in arrays.NORB_PARTS for what in ("dat", "info")),
    read=arrays.read_smallnorb,
)
_dsprites: Final = Layout(
    name="dSprites' npz file",
    folders=("dsprites", "dsprites-dataset", "."),
    marks=(arrays.DSPRITES_FILE,),
    read=arrays.read_dsprites,
)
_gtsrb: Final = partial(Layout, folders=("GTSRB", "gtsrb/GTSRB"), read=annotated.read_gtsrb)
_plain: Final = partial(Layout, name="the publisher's class folders", read=class_folders.read_plain)

PUBLISHED: Final[dict[str, tuple[Layout, ...]]] = {
    "imagenet": (
        Layout(
            name="ILSVRC's class folders below train/ and val/",
            folders=("ILSVRC2012",),
            marks=("train", "val"),
            read=class_folders.read_folders,
        ),
    ),
    "cifar10": (
        Layout(
            name="CIFAR's Python files",
            folders=("cifar-10-batches-py",),
            marks=("data_batch_1", "test_batch", "batches.meta"),
            read=pickles.read_cifar10,
        ),
    ),
    "cifar100": (
        Layout(
            name="CIFAR's Python files",
            folders=("cifar-100-python",),
            marks=("train", "test", "meta"),
            is_there=lambda folder: (folder / "meta").is_file() and (folder / "train").is_file(),
            read=pickles.read_cifar100,
        ),
    ),
    "pets": (
        Layout(
            name="the lists in annotations/",
            folders=("oxford-iiit-pet",),
            marks=("images", "annotations/trainval.txt", "annotations/test.txt"),
            read=lists.read_pets,
        ),
    ),
    "cars": (
        Layout(
            name="the annotations of devkit/",
            folders=("stanford_cars",),
            marks=("cars_train", "cars_test", "devkit/cars_train_annos.mat"),
            read=matlab.read_cars,
        ),
    ),
    "caltech101": (
        Layout(
            name="the folder 101_ObjectCategories",
            folders=("101_ObjectCategories", "caltech-101/101_ObjectCategories"),
            marks=("accordion",),
            read=class_folders.read_caltech,
        ),
    ),
    "dtd": (
        Layout(
            name="the lists in labels/",
            folders=("dtd",),
            marks=("images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt"),
            read=lists.read_dtd,
        ),
    ),
    "birds": (
        Layout(
            name="the lists of CUB_200_2011",
            folders=("CUB_200_2011",),
            marks=("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
            read=lists.read_birds,
        ),
    ),
    "svhn": (
        Layout(
            name="the MATLAB files of cropped digits",
            folders=(".",),
            marks=("train_32x32.mat", "test_32x32.mat"),
            read=matlab.read_svhn,
        ),
    ),
    "flowers": (
        Layout(
            name="setid.mat and imagelabels.mat",
            folders=("flowers-102",),
            marks=("jpg", "setid.mat", "imagelabels.mat"),
            read=matlab.read_flowers,
        ),
    ),
    "sun397": (
        Layout(
            name="the lists of Partitions",
            folders=("SUN397",),
            marks=("Training_01.txt (or in Partitions/)", "Testing_01.txt", "ClassName.txt"),
            is_there=lists.has_sun397,
            read=lists.read_sun397,
        ),
    ),
    "aircraft": (
        Layout(
            name="the lists in data/",
            folders=("fgvc-aircraft-2013b",),
            marks=("data/images", "data/images_variant_trainval.txt", "data/images_variant_test.txt"),
            read=lists.read_aircraft,
        ),
    ),
    "food101": (
        Layout(
            name="the lists in meta/",
            folders=("food-101",),
            marks=("images", "meta/train.txt", "meta/test.txt", "meta/classes.txt"),
            read=lists.read_food101,
        ),
    ),
    "omniglot": (
        Layout(
            name="the folders of alphabets",
            folders=("omniglot-py",),
            marks=("images_background", "images_evaluation"),
            read=class_folders.read_omniglot,
        ),
    ),
    "gtsrb": (
        _gtsrb(name="GTSRB's folders and CSV", marks=("Final_Training/Images", "Final_Test/Images")),
        _gtsrb(name="torchvision's folders of GTSRB", marks=("Training", "Final_Test/Images")),
    ),
    "fungi": (
        Layout(
            name="train.json and val.json",
            folders=("fgvcx_fungi",),
            marks=("train.json", "val.json"),
            read=annotated.read_fungi,
        ),
    ),
    "uc_merced": (_plain(folders=("UCMerced_LandUse/Images",), marks=("agricultural",)),),
    "col_hist": (_plain(folders=("Kather_texture_2016_image_tiles_5000",), marks=("01_TUMOR",)),),
    "resisc45": (_plain(folders=("NWPU-RESISC45",), marks=("airplane",)),),
    "eurosat": (_plain(folders=("2750", "EuroSAT/2750", "EuroSAT_RGB"), marks=("AnnualCrop",)),),
    "patch_camelyon": (
        Layout(
            name="PatchCamelyon's HDF5 files",
            folders=("pcam",),
            marks=tuple(f"camelyonpatch_level_2_split_{part}_x.h5" for part in arrays.PCAM_PARTS),
            read=arrays.read_pcam,
        ),
    ),
    "retinopathy": (
        Layout(
            name="trainLabels.csv and retinopathy_solution.csv",
            folders=("diabetic-retinopathy-detection",),
            marks=("train", "test", "trainLabels.csv", "retinopathy_solution.csv"),
            read=annotated.read_retinopathy,
        ),
    ),
    "camelyon17": (
        Layout(
            name="metadata.csv of WILDS",
            folders=("camelyon17_v1.0",),
            marks=("metadata.csv", "patches"),
            read=annotated.read_camelyon17,
        ),
    ),
    "iwildcam": (
        Layout(
            name="metadata.csv of WILDS",
            folders=("iwildcam_v2.0",),
            marks=("metadata.csv", "train"),
            read=annotated.read_iwildcam,
        ),
    ),
    "fmow": (
        Layout(
            name="rgb_metadata.csv of WILDS",
            folders=("fmow_v1.1",),
            marks=("rgb_metadata.csv", "images"),
            read=annotated.read_fmow,
        ),
    ),
    "clevr_count": (_clevr(name="CLEVR's scenes", read=annotated.read_clevr_count),),
    "clevr_distance": (_clevr(name="CLEVR's scenes", read=annotated.read_clevr_distance),),
    "kitti_distance": (
        Layout(
            name="KITTI's label files",
            folders=("Kitti/raw", "kitti", "KITTI"),
            marks=("training/image_2", "training/label_2"),
            read=annotated.read_kitti,
        ),
    ),
    "smallnorb_azimuth": (_norb,),
    "smallnorb_elevation": (_norb,),
    "dsprites_orientation": (_dsprites,),
    "dsprites_location": (_dsprites,),
}
"""By task; looked for before the layouts that every task may have."""

TABLES: Final = Layout(
    name="Hugging Face tables",
    marks=("parquet files, or what save_to_disk writes",),
    is_there=lambda folder: hugging_face.is_hugging_face(str(folder)),
    read=class_folders.read_tables,
)
FOLDERS: Final = Layout(
    name="class folders",
    marks=("CLASS/*.png, below train/ and test/ (or val/) where the test part is published",),
    is_there=class_folders.has_folders,
    read=class_folders.read_folders,
)

VTAB_FOLDERS: Final = {
    "caltech101": "caltech101",
    "cifar100": "cifar",
    "clevr_count": "clevr_count",
    "clevr_distance": "clevr_dist",
    "dmlab": "dmlab",
    "dsprites_location": "dsprites_loc",
    "dsprites_orientation": "dsprites_ori",
    "dtd": "dtd",
    "eurosat": "eurosat",
    "flowers": "oxford_flowers102",
    "kitti_distance": "kitti",
    "patch_camelyon": "patch_camelyon",
    "pets": "oxford_iiit_pet",
    "resisc45": "resisc45",
    "retinopathy": "diabetic_retinopathy",
    "smallnorb_azimuth": "smallnorb_azi",
    "smallnorb_elevation": "smallnorb_ele",
    "sun397": "sun397",
    "svhn": "svhn",
}
"""What the 19 tasks are called in the folder `vtab-1k` in which VTAB-1k's images are passed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Images of a public task on this disk."""

    definition: Definition
    layout: Layout
    folder: Path

    def open(self) -> Source:
        """Its images; raises DataError where files are missing or malformed, or there are other classes."""
        return self.layout.open(self.folder, self.definition)


def layouts_of(task: str) -> Iterator[Layout]:
    """The layouts of a task in the order in which they are looked for."""
    yield from PUBLISHED.get(task, ())
    yield TABLES
    if task in VTAB_FOLDERS:  # before class folders, since its folder has one of images
        yield Layout(
            name="VTAB-1k's lists",
            folders=(f"vtab-1k/{VTAB_FOLDERS[task]}",),
            marks=("train800val200.txt", "test.txt"),
            read=lists.read_vtab,
        )
    yield FOLDERS


def find(definition: Definition, root: Path) -> Found | None:
    """Where the images of a task lie below the root, in the first layout of which there is something."""
    for layout in layouts_of(definition.name):
        for folder in layout.places(root, definition.name):
            if layout.holds(folder):
                return Found(definition=definition, layout=layout, folder=folder)
    return None


def expected(definition: Definition, root: Path) -> list[str]:
    """Where each layout is looked for, a line each."""
    return [
        f"{' or '.join(str(place) for place in _shortest(layout, root, definition.name))}: {', '.join(layout.marks)}"
        for layout in layouts_of(definition.name)
    ]


def _shortest(layout: Layout, root: Path, task: str) -> list[Path]:
    """One place for each of its folders, and the task's own."""
    return [*dict.fromkeys([*(root / folder for folder in layout.folders), root / task])]
