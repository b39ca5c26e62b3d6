import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.measures import MEASURES_SCHEMA
from evals.protocol import PROTOCOLS, RESULT_SCHEMA, Protocol, upstream_eval_id
from models.errors import UnknownNameError, UserError

ROOT = Path(__file__).parents[2]
EVALUATIONS = st.builds(
    Protocol,
    name=st.sampled_from(sorted(PROTOCOLS)),
    shots=st.lists(st.integers(1, 50), min_size=1, max_size=4).map(tuple),
    draws=st.integers(1, 5),
    layers=st.sampled_from(["all", "last"]),
)


def test_ids_are_those_of_stored_studies():
    assert Protocol().eval_id("mnist") == "0ef888fe892d"
    fixed = Protocol(name="ridge-fixed", shots=(10,), draws=1, layers="last")
    assert fixed.eval_id("mnist") == "ca934c63ce2b"


@given(st.text(max_size=8), st.text(max_size=8), EVALUATIONS, EVALUATIONS)
def test_an_id_is_shared_exactly_by_equal_evaluations(task, other_task, protocol, other_protocol):
    same = task == other_task and protocol == other_protocol
    assert (protocol.eval_id(task) == other_protocol.eval_id(other_task)) == same


@given(EVALUATIONS, st.randoms())
def test_the_order_and_repeats_of_shots_do_not_matter(protocol, random):
    shots = [*protocol.shots, *protocol.shots[:1]]
    random.shuffle(shots)
    assert replace(protocol, shots=tuple(shots)).eval_id("t") == protocol.eval_id("t")


@given(EVALUATIONS)
def test_a_protocol_has_the_shots_draws_and_layers_that_it_fits_to(protocol):
    method, pairs = PROTOCOLS[protocol.name], list(protocol.combinations())
    assert (protocol.shots == ()) == (method.training != "shots")
    assert len(pairs) == max(1, len(protocol.shots)) * protocol.draws
    assert not method.fixed_draw or protocol.draws == 1
    assert not method.last_layer or protocol.layers == "last"


def test_other_measures_have_other_ids():
    assert upstream_eval_id(by_class=True) != upstream_eval_id(by_class=False)


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


def test_the_schemas_make_tables():
    for schema in (RESULT_SCHEMA, MEASURES_SCHEMA):
        assert pl.DataFrame(schema=schema).columns == list(schema)


def test_the_login_node_needs_no_torch_for_it():
    code = "import sys, evals.protocol, evals.fewshot; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
