import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from models.tensor_file import Part, create, fill, read, shapes, whole_part

TENSORS = {
    "weight": torch.randn(7, 3, 2),
    "step": torch.tensor(3.0),
    "half": torch.randn(5).to(torch.bfloat16),
    "count": torch.tensor(2**40),
    "flags": torch.tensor([True, False, True]),
    "none": torch.empty(0, 4),
    "last": torch.randn(4, 4).to(memory_format=torch.contiguous_format).t(),
}


def same(found, expected=TENSORS):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_safetensors_reads_what_is_written(tmp_path):
    path, parts = tmp_path / "tensors.safetensors", {name: whole_part(tensor) for name, tensor in TENSORS.items()}
    create(path, parts)
    fill(path, parts)
    assert same(load_file(path))
    assert same(read(path))
    assert shapes(path) == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


@given(st.integers(1, 9), st.randoms())
def test_any_number_of_writers_make_the_same_file_and_any_rows_can_be_read(tmp_path_factory, num_writers, random):
    folder, tensor = tmp_path_factory.mktemp("files"), TENSORS["weight"]
    cuts = [0, *sorted(random.randint(0, 7) for _ in range(num_writers - 1)), 7]
    writers = [{"weight": Part((7, 3, 2), 6 * a, tensor[a:b])} for a, b in itertools.pairwise(cuts)]
    create(folder / "many", writers[0])
    create(folder / "one", {"weight": whole_part(tensor)})
    fill(folder / "one", {"weight": whole_part(tensor)})
    for parts in random.sample(writers, len(writers)):
        fill(folder / "many", parts)
    assert (folder / "many").read_bytes() == (folder / "one").read_bytes()
    first, end = sorted((random.randint(0, 7), random.randint(0, 7)))
    assert torch.equal(read(folder / "many", {"weight": (first, end)})["weight"], tensor[first:end])


def test_a_file_is_made_once(tmp_path):
    create(tmp_path / "file", {"step": whole_part(TENSORS["step"])})
    with pytest.raises(FileExistsError):
        create(tmp_path / "file", {"step": whole_part(TENSORS["step"])})
