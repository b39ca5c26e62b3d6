"""Real images on disk in every form that is trained on: class folders, tar shards, tables."""

import io
import json
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from models.data import load_images
from tests.models.encoded import write_tar

loaded = lru_cache(load_images)


def encoded(image_HWC, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image_HWC.squeeze()).save(file, kind)
    return file.getvalue()


def examples(num, dataset="landcover"):
    """(name of the class, PNG) of so many images, sorted by class, so that a folder and a table can have one order."""
    s = loaded(dataset)
    found = np.random.RandomState(0).permutation(len(s.labels_N))[:num]
    classes = [s.classes[label].replace(" ", "-") for label in s.labels_N[found]]
    return sorted(zip(classes, (encoded(image) for image in s.images_NHWC[found]), strict=True), key=lambda e: e[0])


def write_folder(folder, found):
    for number, (label, png) in enumerate(found):
        path = folder / label / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    return str(folder)


def write_shards(folder, found, num_shards, num_held_out=1):
    """Tar shards of a random order of the examples, the last ones held out."""
    folder.mkdir(parents=True)
    classes = sorted({label for label, _ in found})
    (folder / "classes.txt").write_text("\n".join(classes))
    mixed = np.random.RandomState(1).permutation(len(found))
    for shard, numbers in enumerate(np.array_split(mixed, num_shards)):
        name = "train" if shard < num_shards - num_held_out else "val"
        members = []
        for number in numbers:
            label, png = found[number]
            members += [(f"{number:06}.png", png), (f"{number:06}.cls", str(classes.index(label)).encode())]
        write_tar(folder / f"{name}-{shard:06}.tar", members)
    return str(folder)


def write_table(path, found, rows_a_group):
    """A parquet file as on the hub, its classes numbered as a folder numbers them."""
    classes = sorted({label for label, _ in found})
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = {
        "image": [{"bytes": png, "path": None} for _, png in found],
        "label": [classes.index(label) for label, _ in found],
    }
    pq.write_table(pa.table(rows, schema=schema), path, row_group_size=rows_a_group)
    return str(path)
