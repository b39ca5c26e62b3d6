import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.protocol import METHODS, RESULT_SCHEMA, Protocol, eval_id
from models.errors import UnknownNameError, UserError

ROOT = Path(__file__).parents[2]
PROTOCOLS = st.builds(
    Protocol,
    name=st.sampled_from(sorted(METHODS)),
    shots=st.lists(st.integers(1, 50), min_size=1, max_size=4).map(tuple),
    draws=st.integers(1, 5),
    layers=st.sampled_from(["all", "last"]),
)


def test_ids_are_those_of_stored_studies():
    assert eval_id("mnist", "ridge", (1, 5, 10, 25), 3, "all") == "0ef888fe892d"
    assert eval_id("mnist", "ridge-fixed", [10], 1, "last") == "ca934c63ce2b"


@given(st.text(max_size=8), st.text(max_size=8), PROTOCOLS, PROTOCOLS)
def test_an_id_is_shared_exactly_by_equal_evaluations(task, other_task, protocol, other_protocol):
    same = task == other_task and protocol == other_protocol
    assert (protocol.eval_id(task) == other_protocol.eval_id(other_task)) == same


@given(PROTOCOLS, st.randoms())
def test_the_order_and_repeats_of_shots_do_not_matter(protocol, random):
    shots = [*protocol.shots, protocol.shots[0]]
    random.shuffle(shots)
    assert eval_id("t", protocol.name, shots, protocol.draws, protocol.layers) == protocol.eval_id("t")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shots": ()}, "shots: "),
        ({"shots": (0,)}, "shots: "),
        ({"shots": (5, -1)}, "shots: "),
        ({"shots": (2.0,)}, "shots: "),
        ({"shots": (True,)}, "shots: "),
        ({"shots": (np.int64(5),)}, "shots: "),
        ({"draws": 0}, "draws: 0"),
        ({"draws": 1.5}, "draws: 1.5"),
        ({"layers": "first"}, "'all' or 'last'"),
    ],
)
def test_what_has_no_meaning_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        Protocol(**change)


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'ridge-fixed'\?"):
        Protocol(name="ridge-fixd")


def test_the_schema_makes_a_table():
    assert pl.DataFrame(schema=RESULT_SCHEMA).columns == list(RESULT_SCHEMA)


def test_the_login_node_needs_no_torch_for_it():
    code = "import sys, evals.protocol, evals.fewshot; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
