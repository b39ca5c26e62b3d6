"""Public tasks about the layout of a scene: counts, distances, angles. Label rules are those of VTAB."""

from typing import Final

from evals.tasks.task import Definition

CLEVR_SOURCE: Final = "Johnson et al., CVPR 2017, arXiv 1612.06890; labels: arXiv 1910.04867"
CLEVR_URL: Final = "https://cs.stanford.edu/people/jcjohns/clevr/: CLEVR_v1.0.zip"
DSPRITES_SOURCE: Final = "Matthey et al. 2017; labels: arXiv 1910.04867"
DSPRITES_URL: Final = (
    "https://github.com/google-deepmind/dsprites-dataset: dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
)
SMALLNORB_SOURCE: Final = "LeCun et al., CVPR 2004; labels: arXiv 1910.04867"
SMALLNORB_URL: Final = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/: the -dat and -info files, decompressed"

STRUCTURED: Final = (
    Definition(
        name="clevr_count",
        title="CLEVR: number of objects",
        group="structured",
        num_classes=8,
        num_train=70_000,
        num_test=15_000,
        split="published: train, val",
        test_part="val",
        source=CLEVR_SOURCE,
        url=CLEVR_URL,
        licence="CC BY 4.0",
        vtab=True,
    ),
    Definition(
        name="clevr_distance",
        title="CLEVR: distance to the nearest object",
        group="structured",
        num_classes=6,
        num_train=70_000,
        num_test=15_000,
        split="published: train, val",
        test_part="val",
        source=CLEVR_SOURCE,
        url=CLEVR_URL,
        licence="CC BY 4.0",
        vtab=True,
    ),
    Definition(
        name="dmlab",
        title="DMLab frames",
        group="structured",
        num_classes=6,
        num_train=88_178,
        num_test=22_735,
        split="published: train and validation, test",
        source="Zhai et al. 2019, arXiv 1910.04867",
        url="https://github.com/google-research/task_adaptation (through tensorflow_datasets: dmlab); as images in"
        " train/ and test/ class folders or tables",
        licence="Apache-2.0",
        vtab=True,
    ),
    Definition(
        name="kitti_distance",
        title="KITTI: distance to the nearest vehicle",
        group="structured",
        num_classes=4,
        num_train=6733,
        num_test=748,
        split="drawn: whole drives, about a tenth of the 7,481 images, for the test (VTAB's draw has 711)",
        source="Geiger et al., CVPR 2012; labels: arXiv 1910.04867",
        url="https://www.cvlibs.net/datasets/kitti/eval_object.php: left colour images, training labels, and the object"
        " development kit, which tells the drives",
        licence="CC BY-NC-SA 3.0",
        test_share=0.1,
        vtab=True,
    ),
    Definition(
        name="smallnorb_azimuth",
        title="smallNORB: azimuth",
        group="structured",
        num_classes=18,
        num_train=24_300,
        num_test=24_300,
        split="published: training, testing (VTAB tests on half of testing)",
        source=SMALLNORB_SOURCE,
        url=SMALLNORB_URL,
        licence="research purposes",
        vtab=True,
    ),
    Definition(
        name="smallnorb_elevation",
        title="smallNORB: elevation",
        group="structured",
        num_classes=9,
        num_train=24_300,
        num_test=24_300,
        split="published: training, testing (VTAB tests on half of testing)",
        source=SMALLNORB_SOURCE,
        url=SMALLNORB_URL,
        licence="research purposes",
        vtab=True,
    ),
    Definition(
        name="dsprites_orientation",
        title="dSprites: orientation",
        group="structured",
        num_classes=16,
        num_train=663_552,
        num_test=73_728,
        split="drawn: a tenth of each class for the test",
        source=DSPRITES_SOURCE,
        url=DSPRITES_URL,
        licence="zlib/libpng",
        test_share=0.1,
        vtab=True,
    ),
    Definition(
        name="dsprites_location",
        title="dSprites: horizontal position",
        group="structured",
        num_classes=16,
        num_train=663_552,
        num_test=73_728,
        split="drawn: a tenth of each class for the test",
        source=DSPRITES_SOURCE,
        url=DSPRITES_URL,
        licence="zlib/libpng",
        test_share=0.1,
        vtab=True,
    ),
)
