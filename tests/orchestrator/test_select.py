from types import SimpleNamespace

import pytest

from models.recipe import Axes
from orchestrator.select import selection


@pytest.mark.parametrize(
    ("word", "fits"),
    [("flip=true", True), ("flip=True", True), ("flip=false", False), ("flip=1", False), ("mixup=0.20", True)],
)
def test_cells_are_selected_by_an_axis_that_is_true_or_a_number(word, fits):
    recipe = Axes(family="vit", size="pico", flip=True, mixup=0.2)
    assert selection([word])(SimpleNamespace(cell=SimpleNamespace(recipe=recipe))) == fits
