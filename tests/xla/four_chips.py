"""What a process with several devices does, for `test_spmd.py`: python -m tests.xla.four_chips FOLDER, answers in JSON.

A process of its own, because torch-xla settles once how many devices there are.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models.device
from models.build import build_model
from models.device import pick_device
from models.errors import UserError
from models.optim import make_optimizer, set_learning_rate
from models.prepare import recipe_architecture
from models.train import load_model
from tests.xla.runs import Trained, last_checkpoint, recipe, run


def main(folder: Path) -> dict[str, Any]:
    device = pick_device()
    default, sharded_from = models.device.SHARDED_FROM_BYTES, 0
    trained = {
        "replicated": run(recipe(), folder / "replicated"),
        "batch norm": run(recipe("resnet"), folder / "batch norm", stop_after=3),
        "bfloat16": run(recipe(precision="bfloat16"), folder / "bfloat16", stop_after=2),
        "micro-batches": run(recipe(), folder / "micro-batches", micro_batch=3, stop_after=4),
    }
    models.device.SHARDED_FROM_BYTES = sharded_from
    trained["sharded"] = run(recipe(), folder / "sharded")
    run(recipe(), folder / "resumed", stop_after=3)
    trained["resumed"] = run(recipe(), folder / "resumed")
    shardings = _shardings()
    models.device.SHARDED_FROM_BYTES = default
    return {
        "name": device.name,
        "num_chips": device.num_chips,
        "runs": {name: _told(done) for name, done in trained.items()},
        "same_bits": trained["resumed"].bytes() == trained["sharded"].bytes(),
        "shardings": shardings,
        "refused": _refused(folder / "refused"),
        "features_differ_by": _features_differ_by(trained["replicated"]),
    }


def _told(done: Trained) -> dict[str, Any]:
    return {
        "train": done.all("train", "train_loss"),
        "upstream": done.all("checkpoint", "upstream_loss"),
        "compiled": done.compiled,
        "micro_batch": done.records[0]["micro_batch"],
    }


def _shardings() -> dict[str, list[str]]:
    """How the first block's first dense layer and its moments lie: made, after a step, and loaded from a checkpoint."""
    device = pick_device()
    arch = recipe_architecture(recipe(), 10)
    model = build_model(arch).to(device.torch_device)
    weight = model.blocks[0].mlp.fc1.weight  # type: ignore[union-attr,index]  # timm's
    optimizer = make_optimizer(model, recipe(), capturable=True)
    device.spread(model, optimizer)
    found = {"made": [_sharding(weight)]}
    set_learning_rate(optimizer, 1.0, device.scalar)
    model(device.put(torch.ones(8, 3, 32, 32))).sum().backward()
    optimizer.step()
    device.end_step()
    kept = ("exp_avg", "exp_avg_sq", "step")
    found["after a step"] = [_sharding(weight), *(_sharding(optimizer.state[weight][name]) for name in kept)]
    loaded = make_optimizer(model, recipe(), capturable=True)
    state = {
        index: {name: tensor.cpu() for name, tensor in entry.items()}
        for index, entry in optimizer.state_dict()["state"].items()
    }
    loaded.load_state_dict({"state": state, "param_groups": loaded.state_dict()["param_groups"]})
    device.spread(model, loaded)
    found["loaded"] = [_sharding(weight), *(_sharding(loaded.state[weight][name]) for name in kept)]
    return found


def _sharding(tensor: torch.Tensor) -> str:
    import torch_xla

    return str(torch_xla._XLAC._get_xla_sharding_spec(tensor))


def _refused(folder: Path) -> str:
    try:
        run(recipe(batch_size=30), folder)
    except UserError as error:
        return str(error)
    return ""


def _features_differ_by(trained: Trained) -> float:
    """The most by which a feature differs between four devices and the CPU; the last batch is not a full one."""
    from tests.evals.probing import extract_features

    folder, metrics = last_checkpoint(trained.folder)
    load = load_model(recipe_architecture(recipe(), metrics["upstream_num_classes"]))
    images_NHWC = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 1), dtype=np.uint8)
    there = extract_features(load(folder), images_NHWC, batch_size=50)
    del os.environ["PJRT_DEVICE"]
    here = extract_features(load(folder), images_NHWC, batch_size=50)
    return max(float(np.abs(a_ND - b_ND).max()) for a_ND, b_ND in zip(there, here, strict=True))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
