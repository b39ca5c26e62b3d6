"""The trunk that runs of several lengths have in common, kept in a folder of checkpoints that they share.

A reciprocal square root does not know how long a run is until its cooldown begins. Up to there, runs that differ only
in their length take the same steps, bit for bit: one of them takes them, leaves its state, and the others go on from
there (arXiv 2405.18392, section 4).

Files are the truth: a state counts once it is whole (it is linked in under another name, then renamed), whoever was
first has made it, and a run that finds none takes the steps itself. So there is nothing to lock.
"""

import secrets
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from models.checkpoint import RESUME, finalised_steps, step_folder
from models.recipe import Axes, checkpoint_steps, cooldown_start, num_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """Where runs share their states, and the `epochs` of the others, which this one may leave states for."""

    folder: Path
    epochs: tuple[float, ...] = ()


def steps_to_leave(recipe: Axes, trunk: Trunk, *, num_images: int, num_checkpoints: int) -> frozenset[int]:
    """After which steps of this run the others will look for a state: at their checkpoints, and where they cool down.

    A longer run begins where this one cools down, at the latest.
    """
    total, _ = num_steps(num_images, batch_size=recipe.batch_size, epochs=recipe.epochs)
    last = cooldown_start(total)
    found = {last} if max(trunk.epochs, default=0.0) > recipe.epochs else set()
    for epochs in trunk.epochs:
        other, _ = num_steps(num_images, batch_size=recipe.batch_size, epochs=epochs)
        start = cooldown_start(other)
        found |= {step for step in (*checkpoint_steps(other, num_checkpoints), start) if step <= start}
    return frozenset(step for step in found if 0 < step <= last)


def leave_state(checkpoint: Path, trunk: Path) -> None:
    """Shares a finalised checkpoint with the other runs, unless one of them did.

    Raises:
        OSError: it could not be written.
    """
    if not (trunk / checkpoint.name).exists():
        _link_whole(checkpoint, trunk / checkpoint.name)


def take_states(trunk: Path, folder: Path, *, steps: Collection[int], before: int) -> list[int]:
    """The steps of which `folder` got the shared checkpoints, to go on from the last of them.

    That is the last one up to step `before` up to which the trunk has all checkpoints of `steps` that `folder` lacks;
    nothing is taken where the run itself has come further. One that stands in no `steps` goes to the folder of what is
    only for going on from.

    Raises:
        OSError: they could not be written.
    """
    own, shared = finalised_steps(folder), _readable(trunk, folder, before)
    reached = max((*own, *finalised_steps(folder / RESUME)), default=0)
    missing = sorted(step for step in steps if step not in own)
    starts = [start for start in shared if all(step in shared for step in missing if step <= start)]
    if not starts or starts[-1] <= reached:
        return []
    taken = [step for step in missing if step <= starts[-1]]
    try:
        for step in taken:
            _link_whole(step_folder(trunk, step), step_folder(folder, step))
        if starts[-1] not in steps:
            _link_whole(step_folder(trunk, starts[-1]), step_folder(folder / RESUME, starts[-1]))
    except FileNotFoundError:  # somebody cleans up: what is here now is whole, and the run takes the other steps itself
        return [step for step in taken if step_folder(folder, step).exists()]
    return taken


def _readable(trunk: Path, folder: Path, before: int) -> list[int]:
    """The trunk's states up to a step, but those that were found to be torn."""
    aside = {path.name.partition(".")[0] for path in folder.glob("corrupt-step_*")}
    return [s for s in finalised_steps(trunk) if s <= before and f"corrupt-{step_folder(trunk, s).name}" not in aside]


def _link_whole(source: Path, target: Path) -> None:
    """Gives a checkpoint a second place: at once as a whole, and unless another one is there."""
    draft = target.parent / f".draft-{target.name}-{secrets.token_hex(8)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, draft, copy_function=_link)
        draft.rename(target)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if target.exists():
            return
        if isinstance(error, shutil.Error) and not source.exists():  # copytree's own error for all that went wrong
            raise FileNotFoundError(f"{source}: was removed while it was read") from error
        raise


def _link(source: str, target: str) -> None:
    """Checkpoints are never written to once they are there, so a link is as good as a copy."""
    try:
        Path(target).hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copy2(source, target)
