import pytest
import torch

from models.build import build_model
from models.checkpoint import load_checkpoint, save_checkpoint, take_snapshot
from models.optim import make_optimizer, set_learning_rate
from models.prepare import recipe_architecture
from models.recipe import Recipe


def recipe(**axes):
    return Recipe.model_validate(
        {
            "family": "vit",
            "size": "pico",
            "dataset": "icons",
            "image_size": 32,
            "patch_size": 8,
            "optimizer": "adafactor",
            "weight_decay": 0.1,
            "head_learning_rate": 1e-2,
            "head_weight_decay": 0.5,
        }
        | axes
    )


def reference_step(w, gradient, state, step, lr, decay):
    """Adafactor of arXiv 2106.04560, section 3.4, of one weight in float64; `state` holds the moments."""
    beta = min(0.999, 1 - step**-0.8)
    square = gradient.square() + 1e-30
    sides = sorted(range(w.ndim), key=lambda side: (w.shape[side], side))
    if w.ndim < 2 or w.shape[sides[-2]] < 16:
        state["v"] = beta * state.get("v", 0) + (1 - beta) * square
        estimate = state["v"]
    else:
        for name, side in (("rows", sides[-1]), ("columns", sides[-2])):
            state[name] = beta * state.get(name, 0) + (1 - beta) * square.mean(side, keepdim=True)
        # What is left of either, once it is averaged over both sides, is the mean of all.
        whole = state["rows"].mean(sides[-2], keepdim=True)
        estimate = state["rows"] * state["columns"] / whole
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient / estimate.sqrt()
    return w * (1 - lr * decay) - lr * state["m"]


def test_adafactor_is_that_of_scaled_vits_with_each_groups_own_rate_and_decay():
    """Momentum is in bfloat16, so the steps agree to its eight bits."""
    torch.manual_seed(0)
    model = build_model(recipe_architecture(recipe(), 40))
    optimizer = make_optimizer(model, recipe())
    groups = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    expected = [p.detach().double().clone() for p, _ in groups]
    states = [{} for _ in groups]
    assert {(g["base_lr"], g["weight_decay"]) for _, g in groups} == {
        (1e-3, 0.1),
        (1e-3, 0.0),
        (1e-2, 0.5),
        (1e-2, 0.0),
    }
    for step in range(1, 6):
        factor = step / 5
        set_learning_rate(optimizer, factor)
        for i, (p, group) in enumerate(groups):
            p.grad = torch.randn_like(p) * (i + 1) * step
            expected[i] = reference_step(
                expected[i], p.grad.double(), states[i], step, group["base_lr"] * factor, group["weight_decay"]
            )
        began = [p.detach().clone() for p, _ in groups]
        optimizer.step()
        for (p, group), before, wanted in zip(groups, began, expected, strict=True):
            assert not torch.equal(p, before)
            assert torch.allclose(p.double(), wanted, rtol=0, atol=0.05 * group["base_lr"])
    factored = {tuple(p.shape) for p, _ in groups if p.ndim == 2 and min(p.shape) >= 16}
    assert {rows > columns for rows, columns in factored} == {True, False}


def test_a_checkpoint_keeps_the_factors_and_the_momentum_in_their_own_precision(tmp_path):
    torch.manual_seed(0)
    models = [build_model(recipe_architecture(recipe(), 40)) for _ in range(2)]
    saved, loaded = (make_optimizer(model, recipe()) for model in models)
    for p in models[0].parameters():
        p.grad = torch.randn_like(p)
    saved.step()
    folder = save_checkpoint(take_snapshot(tmp_path, 1, model=models[0], optimizer=saved, state={}, metrics={}))
    load_checkpoint(folder, model=models[1], optimizer=loaded)
    ours, theirs = (optimizer.state_dict()["state"] for optimizer in (loaded, saved))
    keys = {"step", "exp_avg", "exp_avg_sq", "exp_avg_sq_r", "exp_avg_sq_c"}
    assert {key for entry in ours.values() for key in entry} == keys
    assert ours.keys() == theirs.keys()
    for i, entry in ours.items():
        assert entry["exp_avg"].dtype == torch.bfloat16
        for key, value in entry.items():
            assert torch.equal(value, theirs[i][key])
            assert value.dtype == theirs[i][key].dtype


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_a_rate_of_nothing_moves_nothing(optimizer):
    model = build_model(recipe_architecture(recipe(), 40))
    stepper = make_optimizer(model, recipe(optimizer=optimizer))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    set_learning_rate(stepper, 0.0)
    stepper.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
