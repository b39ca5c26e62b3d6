"""Train and test parts, and nested subsets of the train part; all draws are fixed by numbers, none by the clock.

They use `numpy.random.RandomState`, whose streams numpy froze (NEP 19); those of `default_rng` may change with numpy,
and with them every cell of a study.
"""

from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from models.data.sets import BoolArray, IntArray, LabelSet
from models.errors import DataError, UserError

SplitRule = Literal["given", "groups", "images"]

TEST_SHARE = 0.1

_GROUP_ORDER = 4  # of 0 to 9 the one with which the test parts of the packaged sets hold most classes and most fonts
_LEAST_GAIN = 1e-9  # above rounding errors, so that the search for groups ends


def split(s: LabelSet, *, test_share: float = TEST_SHARE) -> tuple[IntArray, IntArray]:
    """Sorted indices of the train part and of the test part; always the same ones for the same set.

    In this order: the test part that the source defines; else whole groups, about `test_share` of every class's
    images; else, where there is one group, or every image is its own, or no choice of whole groups comes between half
    and twice the share, that share of every class's images. Every class of the test part occurs in the train part.
    """
    test_N = _held_out(s, test_share)[1]
    return np.flatnonzero(~test_N), np.flatnonzero(test_N)


def split_rule(s: LabelSet, *, test_share: float = TEST_SHARE) -> SplitRule:
    """Which of its three rules `split` applies: the source's own test part, whole groups, or single images."""
    return _held_out(s, test_share)[0]


def _held_out(s: LabelSet, share: float) -> tuple[SplitRule, BoolArray]:
    if s.held_out_N is not None:
        return "given", s.held_out_N
    if 1 < len(np.unique(s.groups_N)) < len(s.groups_N):
        test_N = _whole_groups(s.labels_N, s.groups_N, share)
        if share / 2 <= test_N.mean() <= share * 2:
            return "groups", test_N
    return "images", _single_images(s.labels_N, share)


def _whole_groups(labels_N: IntArray, groups_N: IntArray, share: float) -> BoolArray:
    """Which images belong to held-out groups: in random order, each changes sides if that brings the classes nearer.

    Nearer means a smaller sum over classes of (held out - wanted)^2 / size. It ends when no group wants to change.
    """
    group_N, tallies = _tallies(labels_N, groups_N)
    size_C = np.bincount(labels_N)
    held_C = np.zeros(len(size_C))
    taken_G = np.zeros(len(tallies), dtype=np.bool_)
    rng = np.random.RandomState(_GROUP_ORDER)
    changed = True
    while changed:
        changed = False
        for group in rng.permutation(len(tallies)):
            label, count = tallies[group]
            change = -count if taken_G[group] else count
            held, size = held_C[label], size_C[label]
            worse = np.sum(change * (change + 2 * (held - share * size)) / size)
            if worse < -_LEAST_GAIN and np.all(held + change < size):
                taken_G[group] = not taken_G[group]
                held_C[label] += change
                changed = True
    return cast("BoolArray", taken_G[group_N])


def _tallies(labels_N: IntArray, groups_N: IntArray) -> tuple[IntArray, list[tuple[IntArray, IntArray]]]:
    """The groups numbered from 0, and of each the labels that it holds and how many of each."""
    group_N = np.unique(groups_N, return_inverse=True)[1]
    num_classes = labels_N.max() + 1
    pairs, counts = np.unique(group_N * num_classes + labels_N, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(1, group_N.max() + 1) * num_classes)
    return group_N, list(zip(np.split(pairs % num_classes, starts), np.split(counts, starts), strict=True))


def _single_images(labels_N: IntArray, share: float) -> BoolArray:
    """Which images are held out: of n images of a class round(share x n), at least one, and never the only one."""
    rank_N, size_N = _ranks(labels_N, seed=0)
    held_N = np.minimum(np.maximum(np.floor(share * size_N + 0.5), 1), size_N - 1)
    test_N: BoolArray = rank_N < held_N
    return test_N


def whole_shards(name: str, shard_sizes: tuple[int, ...]) -> frozenset[int]:
    """The shards to hold out of a set whose source holds out none: in a fixed random order, about `TEST_SHARE` of all.

    It asks for no label, so that a set is parted in the same way before and after its labels are listed.

    Raises:
        DataError: the shards are so few that the share would be more than twice as large.
    """
    order_S = np.random.RandomState(0).permutation(len(shard_sizes))
    sums_S = np.cumsum(np.array(shard_sizes)[order_S])
    num = 1 + int(np.argmin(np.abs(sums_S / sums_S[-1] - TEST_SHARE)))
    if sums_S[num - 1] > 2 * TEST_SHARE * sums_S[-1]:
        raise DataError(
            f"{name}: no shard is held out by its name (val-, test-), and {len(shard_sizes)} are too few to hold whole"
            f" ones out: {TEST_SHARE:.0%} of the examples are wanted"
        )
    return frozenset(int(shard) for shard in order_S[:num])


def subset(
    labels: IntArray, train_idx: IntArray, *, fraction: float, classes: float, seed: int, images: int | None = None
) -> IntArray:
    """Sorted indices, out of `train_idx`, of a share of the classes, and of a share of their images or of so many.

    At least two classes are kept. Of them, stratified, either a `fraction`: a class of n images keeps fraction x n,
    rounded up or down; or exactly `images` in all, of every class the same share up to rounding. Every class keeps at
    least one. Nested: with the same seed a smaller `fraction`, `images` or `classes` gives a subset of a larger one;
    only with fewer `classes` at the same `images` each class that stays has more images, among them those that it had.

    Raises:
        UserError: a share outside (0, 1], a seed that is not a 32-bit natural number, fewer than two classes, or more
            `images` than the classes hold, or fewer than they are; both a fraction and `images`.
    """
    present, label_T = np.unique(labels[train_idx], return_inverse=True)
    kept_C, offset_C = _drawn_classes(len(present), fraction, classes, seed, images)
    rank_T, size_T = _ranks(label_T, seed)
    if images is None:
        keep_T = kept_C[label_T] & ((rank_T + offset_C[label_T] < fraction * size_T) | (rank_T == 0))
        return np.sort(train_idx[keep_T])
    of_kept = np.flatnonzero(kept_C[label_T])
    _refuse_number(images, int(kept_C.sum()), len(of_kept))
    place = (rank_T + offset_C[label_T]) / size_T  # all images with a place below f are a share f of each class
    order = np.lexsort((place[of_kept], rank_T[of_kept] > 0))
    return np.sort(train_idx[of_kept[order[:images]]])


def subset_size(
    size_C: IntArray, *, fraction: float, classes: float, seed: int, images: int | None = None
) -> tuple[int, int]:
    """(images, classes) that `subset` keeps of classes of these sizes, which may be 0; raises the same."""
    size_C = size_C[size_C > 0]
    kept_C, offset_C = _drawn_classes(len(size_C), fraction, classes, seed, images)
    num_classes = int(kept_C.sum())
    if images is not None:
        _refuse_number(images, num_classes, int(size_C[kept_C].sum()))
        return images, num_classes
    num_C = np.ceil(fraction * size_C - offset_C)
    # The sums that `subset` compares may round otherwise than this difference.
    num_C += (num_C + offset_C < fraction * size_C).astype(np.float64)
    num_C -= (num_C - 1 + offset_C >= fraction * size_C).astype(np.float64)
    return int(np.clip(num_C, 1, size_C)[kept_C].sum()), num_classes


def kept_classes(size_C: IntArray, *, classes: float, seed: int) -> IntArray:
    """Which classes `subset` keeps, ascending, of classes of these sizes, which may be 0; raises the same."""
    present = np.flatnonzero(size_C)
    kept: IntArray = present[_drawn_classes(len(present), 1.0, classes, seed, None)[0]]
    return kept


def _drawn_classes(
    num: int, fraction: float, classes: float, seed: int, images: int | None
) -> tuple[BoolArray, NDArray[np.float64]]:
    """(which classes are kept, of every class a number in [0, 1)).

    A class keeps its images with (rank + number) / size < fraction: the expected count is exactly fraction x size.
    """
    for name, value in (("fraction", fraction), ("classes", classes)):
        if not 0 < value <= 1:
            raise UserError(f"{name} must be above 0 and at most 1, not {value}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be from 0 to {2**32 - 1}, not {seed}")
    if images is not None and fraction != 1:
        raise UserError(f"images ({images}) and fraction ({fraction}) both say how many images there are: give one")
    if num < 2:
        raise UserError(f"a subset needs 2 classes or more; the train part has {num}")
    rng = np.random.RandomState(seed)
    kept_C = rng.permutation(num) < max(2, round(classes * num))
    return kept_C, rng.random_sample(num)


def _refuse_number(images: int, num_classes: int, available: int) -> None:
    if not num_classes <= images <= available:
        raise UserError(
            f"images is {images}, but must be from {num_classes} to {available}: so many classes are kept, and so many"
            " training images they have"
        )


def capped(labels: IntArray, idx: IntArray, num: int) -> IntArray:
    """At most `num` of the sorted indices `idx`, every class in proportion; always the same ones.

    Seats are given by largest remainders, so the number is exactly `num` where there are more.
    """
    if len(idx) <= num:
        return idx
    label_T = np.unique(labels[idx], return_inverse=True)[1]
    exact_C = np.bincount(label_T) * (num / len(idx))
    seats_C = np.floor(exact_C).astype(np.int64)
    by_remainder = np.argsort(seats_C - exact_C, kind="stable")
    seats_C[by_remainder[: num - seats_C.sum()]] += 1
    kept_idx: IntArray = idx[_ranks(label_T, seed=1)[0] < seats_C[label_T]]
    return kept_idx


def _ranks(labels_N: IntArray, seed: int) -> tuple[IntArray, IntArray]:
    """Of every image, its place in a random order of its class, and the size of its class."""
    order_N = np.lexsort((np.random.RandomState(seed).random_sample(len(labels_N)), labels_N))
    size_C = np.bincount(labels_N)
    first_C = np.cumsum(size_C) - size_C
    rank_N = np.empty(len(labels_N), dtype=np.int64)
    rank_N[order_N] = np.arange(len(labels_N)) - first_C[labels_N[order_N]]
    return rank_N, size_C[labels_N]
