"""Which images are drawn from a set, and in which order they are visited."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.order import epoch_order, make_order, num_streams
from models.data.parts import MAX_TEST, draw_parts
from models.errors import DataError, UserError

SHARDS = st.lists(st.integers(0, 60), min_size=2, max_size=12).filter(lambda sizes: sum(sizes) > 0)


@dataclass
class Unlabelled:
    """A set of which only the sizes of its shards are known; the last one is held out."""

    shard_sizes: tuple[int, ...]
    name: str = "shards"
    classes: tuple[str, ...] = ("a", "b")
    labels_N: None = None
    held_out_N: None = None
    drawn_by_shard: bool = True
    most_open: int = 256

    @property
    def held_out_shards(self):
        return frozenset({len(self.shard_sizes) - 1})


def drawn(sizes, fraction=1.0, seed=0, **more):
    subset = {"fraction": fraction, "classes": 1.0, "images": None, "seed": seed} | more
    return draw_parts(Unlabelled(tuple(sizes)), subset)


def indices(part):
    return [part.index(position) for position in range(int(part.shard_sizes.sum()))]


def epoch(order, num_images, batch_size, epoch=0):
    a_epoch = num_images // batch_size
    return np.concatenate([order.batch(epoch * a_epoch + step) for step in range(a_epoch)])


@given(SHARDS, st.integers(1, 64), st.integers(0, 3))
def test_an_epoch_visits_every_image_at_most_once_and_leaves_out_less_than_a_batch(sizes, batch, which):
    batch = min(batch, sum(sizes))
    order = make_order(np.array(sizes), batch_size=batch, seed=3, most_streams=8)
    visited = epoch(order, sum(sizes), batch, which)
    assert len(set(visited)) == len(visited) == sum(sizes) // batch * batch
    assert 0 <= visited.min() <= visited.max() < sum(sizes)


def test_epochs_and_seeds_have_other_orders_and_a_step_is_all_to_go_on_by():
    sizes = np.array([30, 50, 20])
    orders = [make_order(sizes, batch_size=16, seed=seed, most_streams=8) for seed in (0, 0, 1)]
    first = [epoch(order, 100, 16) for order in orders]
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], epoch(orders[0], 100, 16, 1))
    assert np.array_equal(orders[1].batch(9), make_order(sizes, batch_size=16, seed=0, most_streams=8).batch(9))


def test_one_shard_has_the_order_of_all_images():
    order = make_order(np.array([100]), batch_size=16, seed=0)
    assert np.array_equal(order.batch(2), epoch_order(100, seed=0, epoch=0)[32:48])
    assert np.array_equal(order.batch(7), epoch_order(100, seed=0, epoch=1)[16:32])


def test_a_shard_is_read_in_one_go_and_ranks_read_different_ones():
    sizes = np.full(16, 1000)
    order = make_order(sizes, batch_size=64, seed=0, most_streams=256)
    assert order.num_streams == 8
    shards_TS8 = np.stack([order.batch(step).reshape(8, 8) // 1000 for step in range(250)])
    for stream in range(8):
        read = shards_TS8[:, stream].ravel()
        assert np.count_nonzero(np.diff(read)) == 1  # two whole shards, one after the other
    of_ranks = [set(shards_TS8[:, [2 * rank, 2 * rank + 1]].ravel()) for rank in range(4)]
    assert sum(map(len, of_ranks)) == len(set.union(*of_ranks)) == 16


@pytest.mark.parametrize(
    ("batch", "most", "streams"),
    [(4096, 10_000, 512), (4096, 100, 64), (64, 1, 1), (100, 99, 4), (31, 99, 1), (8, 99, 1)],
)
def test_streams_divide_the_batch_and_leave_eight_images_each(batch, most, streams):
    assert num_streams(batch, most) == streams


# --- parts ---------------------------------------------------------------------------------------------------------


@given(SHARDS.filter(lambda sizes: sum(sizes[:-1]) > 0 and sizes[-1] > 0))
def test_without_labels_all_but_the_held_out_shards_are_trained_on(sizes):
    parts = drawn(sizes)
    assert indices(parts.train) == list(range(sum(sizes[:-1])))
    assert indices(parts.test) == list(range(sum(sizes[:-1]), sum(sizes)))


def test_a_fraction_is_nested_and_the_same_of_every_shard():
    sizes = [1000, 400, 37, 500]
    found = {fraction: set(indices(drawn(sizes, fraction).train)) for fraction in (0.01, 0.1, 0.5, 1.0)}
    assert found[0.01] < found[0.1] < found[0.5] < found[1.0]
    for fraction in (0.1, 0.5):
        of_shards = drawn(sizes, fraction).train.shard_sizes
        assert np.abs(of_shards[:3] - fraction * np.array(sizes[:3])).max() < 1
        assert of_shards[3] == 0
    assert found[0.1] != set(indices(drawn(sizes, 0.1, seed=1).train))


def test_the_test_part_of_a_large_set_is_capped():
    test = drawn([1000, 3 * MAX_TEST]).test
    assert int(test.shard_sizes.sum()) == MAX_TEST
    assert test.index(MAX_TEST - 1) > 2.9 * MAX_TEST


def test_hundreds_of_millions_of_images_take_no_memory_of_their_own():
    parts = drawn([10_000] * 40_000, 0.5)
    order = make_order(parts.train.shard_sizes, batch_size=4096, seed=0, most_streams=256)
    assert int(parts.train.shard_sizes.sum()) == pytest.approx(2e8, rel=1e-3)
    index_B = [parts.train.index(int(position)) for position in order.batch(40_000)]
    assert len(set(index_B)) == 4096
    assert max(index_B) > 3e8


@pytest.mark.parametrize("more", [{"classes": 0.5}, {"images": 10}])
def test_what_needs_labels_says_how_to_get_them(more):
    with pytest.raises(DataError, match=r"`upshot data index` lists them"):
        drawn([10, 10], **more)


def test_a_fraction_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"fraction 0\.001 leaves none of 5 images"):
        drawn([5, 5], 0.001)
