"""What a run tells of itself: the records of its log, and the metrics of its checkpoints."""

from typing import Any

from models.device import peak_memory_gb
from models.ladder import num_params, train_flops
from models.step import Run


def start_record(run: Run, first_step: int) -> dict[str, Any]:
    """How this attempt begins."""
    return {
        "event": "start",
        "step": first_step,
        "num_steps": run.num_steps,
        "batch_size": run.batch_size,
        "micro_batch": run.micro_batch,
        "world_size": run.world.size,
        "num_train": len(run.data.train),
        "num_classes": run.data.num_classes,
        "params": num_params(run.architecture),
        "device": run.device.name,
        "accelerators": run.device.num_accelerators,
    }


def train_record(run: Run, step: int, loss: float, rate: float, images_per_second: float) -> dict[str, Any]:
    """A point of the training curves; `rate` is the schedule's factor, `loss` the mean since the last record."""
    record: dict[str, Any] = {
        "event": "train",
        "step": step,
        "examples_seen": step * run.batch_size,
        "train_loss": loss,
        "learning_rate": run.recipe.learning_rate * rate,
        "images_per_second": round(images_per_second, 1),
    }
    if run.peak_teraflops is not None:  # model FLOPs utilisation (arXiv 2204.02311, appendix B)
        record["mfu"] = float(f"{train_flops(run.architecture) * images_per_second / (run.peak_teraflops * 1e12):.3g}")
    return record


def checkpoint_metrics(
    run: Run, step: int, train_loss: float, accuracy: float | None, loss: float | None
) -> dict[str, Any]:
    """What a checkpoint is worth: upstream accuracy and loss, None where they were not measured, and what it cost."""
    return {
        "step": step,
        "examples_seen": step * run.batch_size,
        "train_loss": train_loss,
        "upstream_accuracy": accuracy,
        "upstream_loss": loss,
        "upstream_num_test": len(run.data.test),
        "upstream_num_classes": run.data.num_classes,
        "params": num_params(run.architecture),
        "flops": train_flops(run.architecture) * step * run.batch_size,
        "micro_batch": run.micro_batch,
        "world_size": run.world.size,
        **peaks(run),
    }


def peaks(run: Run) -> dict[str, float | None]:
    """The most memory held: of the host, and of the accelerator by this process, GiB."""
    return {"peak_memory_gb": peak_memory_gb(), "peak_accelerator_gb": run.device.peak_accelerator_gb()}
