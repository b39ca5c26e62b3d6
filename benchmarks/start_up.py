"""From the start of a job to the first step of its cells: by a node's real path, beside a bare script.

A job of several small cells on packaged images runs as an array task runs it, in a process of its own. The first cell
counts from that process's start, imports and all; the others, packed with it, from their own attempt's start. The rival
is the least that any script does to take one step on the same images: import torch and timm, read, build, step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from orchestrator.files import read_records
from orchestrator.store import Manifest, Store
from orchestrator.study import load_study
from slurm.cluster import local_profile
from slurm.resources import Resources

STUDY = """
name = "start-up"
[upstream]
dataset = "icons"
[grid]
family = "vit"
size = "pico"
fraction = 0.02
batch_size = 64
seed = {seeds}
[downstream]
tasks = ["digits"]
[wandb]
mode = "disabled"
"""
TOKEN = "0" * 12
JOB = "import sys; from orchestrator.node import run_task; run_task(sys.argv[1], sys.argv[2], 0)"
BARE = """
import numpy, timm, torch
from models.data.packaged import shipped
images = numpy.load(shipped("images", "icons.npz"))["images"]
model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=16, depth=2, num_heads=1)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.rand(64, 3, 32, 32)).sum().backward()
optimizer.step()
"""


def start_job(folder: Path, num_cells: int) -> tuple[float, list[float]]:
    """Seconds to the first step: of the job's first cell from its process's start, of the others from their own."""
    path = folder / "study.toml"
    path.write_text(STUDY.format(seeds=list(range(num_cells))))
    store = Store(folder / "run")
    store.write_study(path.read_text(), local_profile())
    cells = store.cells()
    store.write_cells(cells)
    manifest = Manifest(
        token=TOKEN,
        study=load_study(path).study.name,
        stage="train",
        executor="local",
        tasks=[[cell.cell_id for cell in cells]],
        resources=asdict(Resources(mem_gb=4, time_min=60)),
        submitted=time.time(),
    )
    store.write_manifest(manifest)
    began = time.time()
    subprocess.run([sys.executable, "-c", JOB, str(store.root), TOKEN], stdout=subprocess.DEVNULL, check=True)
    attempts = [next(e["time"] for e in store.attempts(c.cell_id) if e["event"] == "start") for c in cells]
    steps = [next(r for r in read_records(store.train_log(c.cell_id)).records if r["event"] == "train") for c in cells]
    assert {record["step"] for record in steps} == {1}, "a record a step is what tells of the first one"
    return steps[0]["time"] - began, [s["time"] - a for s, a in zip(steps[1:], attempts[1:], strict=True)]


def seconds(program: str) -> float:
    """Wall time of a whole process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Prints medians; A B A B, after one warm-up of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cells", type=int, default=6, help="cells in the job")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    firsts, others, bare = [], [], []
    for run in range(options.runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            first, more = start_job(Path(folder), options.cells)
        rival = seconds(BARE)
        if run:
            firsts, others, bare = [*firsts, first], [*others, *more], [*bare, rival]
    ratio = statistics.median(a / b for a, b in zip(firsts, bare, strict=True))
    print(f"first cell of a job, to its first step: {statistics.median(firsts):.2f} s")
    print(f"a bare script, to its first step:       {statistics.median(bare):.2f} s (ratio {ratio:.2f})")
    print(f"each further cell of the job:           {statistics.median(others):.3f} s (most {max(others):.3f} s)")
    print(json.dumps({"first": firsts, "bare": bare, "further": others}))


if __name__ == "__main__":
    main()
