"""Fixed random orders of a task's images, and the 1,000 training images of VTAB-1k.

Shape suffixes: N images of the train part, F to fit, C to choose.
"""

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evals.tasks.public import DEFINITIONS
from models.errors import DataError

Integers = NDArray[np.int64]

NUM_FIT: Final = 800
NUM_CHOOSE: Final = 200


def vtab_split(task_name: str, labels_N: Integers) -> tuple[Integers, Integers]:
    """(800 images to fit, 200 to choose by), disjoint indices into the train part; both together are VTAB-1k's 1,000.

    Where a VTAB task has exactly 1,000 training images, as in the lists `train800val200.txt`, they are the published
    ones in the published order: the first 800 and the last 200. Elsewhere they are drawn, by a fixed random order of
    the task's name and of nothing else, without regard to classes, as VTAB draws (a class may be missing). Numbers of
    drawn images are comparable to published ones up to the luck of the draw, and only where the test part is that of
    VTAB too; those of the published lists are comparable as they are.

    Raises:
        DataError: there are fewer than 1,000 training images, or all that would be fitted are of one class.
    """
    num, wanted = len(labels_N), NUM_FIT + NUM_CHOOSE
    if num < wanted:
        raise DataError(
            f"task {task_name!r}: has {num} training images, VTAB-1k needs {wanted} ({NUM_FIT} to fit, {NUM_CHOOSE} to"
            " choose by). Leave the task or the protocol out"
        )
    published = num == wanted and task_name in DEFINITIONS and DEFINITIONS[task_name].vtab
    order_N = np.arange(num) if published else fixed_order(f"vtab1k\0{task_name}", num)
    fit_F, choose_C = order_N[:NUM_FIT], order_N[NUM_FIT:wanted]
    if len(np.unique(labels_N[fit_F])) < 2:
        raise DataError(f"task {task_name!r}: the {NUM_FIT} images of VTAB-1k that are fitted are all of one class")
    return fit_F, choose_C


def fixed_order(key: str, num: int) -> Integers:
    """0 to `num` - 1 in a random order that depends on the key only."""
    # NumPy keeps the raw stream of a bit generator for ever (NEP 19), but not what `Generator` makes of it.
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")
    return np.argsort(np.random.PCG64(seed).random_raw(num), kind="stable").astype(np.int64)
