"""Real images of a packaged set, encoded, and the tar shards that the tests of readers write of them."""

import io
import json
import tarfile
from functools import lru_cache

import numpy as np
from PIL import Image

from models.data import load_images

CLASSES = load_images("cells").classes


@lru_cache
def encoded(suffix="png"):
    """(image as a file of that kind, its label) of every image of `cells`, in a fixed random order."""
    s = load_images("cells")
    order = np.random.RandomState(0).permutation(len(s.labels_N))
    return [(_encode(s.images_NHWC[i, ..., 0], suffix), int(s.labels_N[i])) for i in order]


def _encode(image_HW, suffix):
    file = io.BytesIO()
    Image.fromarray(image_HW).save(file, {"jpg": "jpeg"}.get(suffix, suffix))
    return file.getvalue()


def write_tar(path, members, form=tarfile.USTAR_FORMAT):
    """A tar of (name, content) members, by Python's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def members_of(examples, first=0, suffix="png", kind="cls"):
    """The members of a shard: `000017.png` and its label in `000017.cls` (number or name) or `000017.json`."""
    for number, (image, label) in enumerate(examples, first):
        yield f"{number:06d}.{suffix}", image
        content = {"cls": str(label), "name": CLASSES[label], "json": json.dumps({"caption": "a cell", "label": label})}
        if kind:
            yield f"{number:06d}.{'json' if kind == 'json' else 'cls'}", content[kind].encode()


def write_shards(folder, name="{:05d}.tar", num=12, size=20, start=0, **how):
    """`num` shards of `size` examples each, and what is in them."""
    examples = encoded(how.get("suffix", "png"))[start : start + num * size]
    for shard in range(num):
        part = examples[shard * size : (shard + 1) * size]
        write_tar(folder / name.format(shard), members_of(part, start + shard * size, **how))
    return examples
