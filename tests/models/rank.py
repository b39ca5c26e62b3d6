"""A rank that runs the cells it is given, in one world; it prints each cell's records, and how it ended."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from models import saver
from models.build import build_model
from models.checkpoint import Snapshot, write
from models.distributed import World
from models.prepare import recipe_architecture
from models.recipe import Recipe
from models.shard import sharded_model, whole
from models.train import train
from models.trunk import Trunk

CELL_ENDS = ("done", "diverged", "interrupted")


def run(name, cell, folder, world):
    """How the cell ended; it is told to stop, to fail or to be killed where the cell says so."""
    asked, records = [], []

    def should_stop():
        asked.append(1)
        if [world.rank, len(asked)] == cell.get("oom_at"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [world.rank, len(asked)] == cell.get("stop_at")

    if cell.get("dies_writing") == world.rank:
        saver.write = KilledWriting()
    try:
        ended = train(
            Recipe.model_validate(cell["recipe"]),
            folder / cell.get("folder", name),
            num_checkpoints=3,
            log=records.append,
            should_stop=should_stop,
            micro_batch=cell.get("micro_batch"),
            world=world,
            sharded=cell.get("sharded", False),
            checkpointed=cell.get("checkpointed", False),
            trunk=Trunk(folder=folder / "trunk", epochs=tuple(cell["lengths"])) if "lengths" in cell else None,
        )
        said = [ended.outcome, ended.step, ended.first_step]
    except Exception as error:
        said = [type(error).__name__, str(error), getattr(error, "failed_type", None)]
    print(json.dumps({"cell": name, "ended": said, "records": records}), flush=True)
    return said


class KilledWriting:
    """Writes a first checkpoint; in the middle of the second one it is killed."""

    num_written = 0

    def __call__(self, snapshot: Snapshot) -> None:
        if self.num_written == 0:
            write(snapshot)
        else:
            file, parts = next(iter(snapshot.tensors.items()))
            write(replace(snapshot, tensors={file: parts}))
            os.kill(os.getpid(), signal.SIGKILL)
        self.num_written += 1


def compare_initial(name, recipe, world):
    """Which first weights of a sharded model are not those of a whole one, and how many numbers this rank has."""
    arch = recipe_architecture(Recipe.model_validate(recipe), 11)
    torch.manual_seed(3)
    expected, state = build_model(arch).state_dict(), torch.get_rng_state()
    torch.manual_seed(3)
    model = sharded_model(lambda: build_model(arch), torch.device("cpu"), world)
    said = {
        "drew_alike": torch.equal(torch.get_rng_state(), state),
        "differing": [key for key, t in model.state_dict().items() if not torch.equal(whole(t), expected[key])],
        "held": sum(parameter.to_local().numel() for parameter in model.parameters()),
    }
    print(json.dumps({"cell": name, **said}), flush=True)


def main():
    rank, size, port, listen_fd, folder, cells = json.loads(sys.argv[1])
    place = {"rank": rank, "size": size, "local_rank": rank, "host": "127.0.0.1", "port": port}
    with World.formed(**place, listen_fd=listen_fd) as world:
        for name, cell in cells.items():
            if "initial" in cell:
                compare_initial(name, cell["initial"], world)
            elif run(name, cell, Path(folder), world)[0] not in CELL_ENDS:
                sys.exit()  # the world is of no more use


if __name__ == "__main__":
    main()
