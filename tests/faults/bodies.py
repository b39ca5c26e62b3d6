"""Jobs that train for real and, where a test asks for it, come to grief on the way: run on the nodes."""

import time
from pathlib import Path

from orchestrator import node
from orchestrator.node.bodies import BODIES
from orchestrator.node.work import Work


def order(study_dir: Path, cell_id: str, mischief: str) -> None:
    """Lets the cell's next training come to grief, once."""
    folder = study_dir.parent / "mischief"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / cell_id).write_text(mischief)


def run_task(study_dir: str, token: str, index: int) -> None:
    node.run_task(study_dir, token, index, bodies={**BODIES, "train": train})


def train(work: Work) -> dict[str, object]:
    ordered = work.store.root.parent / "mischief" / work.cell_id
    if ordered.exists():
        mischief = ordered.read_text()
        ordered.unlink()
        MISCHIEF[mischief]()
    return BODIES["train"](work)


def _bug() -> None:
    raise ZeroDivisionError("a bug in the training code")


def _accelerator_memory() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory (said by a test: there is no GPU here)")


def _memory() -> None:
    """Fills memory until the limit ends the job; ends by itself where there is none."""
    held = []
    for _ in range(40):
        held.append(bytearray(b"x" * 2**28))
        time.sleep(0.2)
    raise AssertionError("nothing stopped a job that took 10 GiB")


MISCHIEF = {"bug": _bug, "memory": _memory, "accelerator memory": _accelerator_memory}
