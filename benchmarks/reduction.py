"""Large results tables through `upshot reduce`: wall time and peak memory, beside an eager read of the same file.

The table is made up (4,800 cells x 25 tasks x 4 shots x 3 draws x 7 layers x some checkpoints, every column of the
results schema), with hulls of few vertices as real tables have them. The rival reads the whole file with polars and
takes the same means and best layers from memory, with no frontier: the least that any script would do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from orchestrator.results import SCHEMA

UPSHOT = str(Path(sys.executable).with_name("upshot"))
CELLS, TASKS, SHOTS, DRAWS, LAYERS = 4800, 25, (1, 5, 10, 25), 3, 7
ROWS_A_CHECKPOINT = CELLS * TASKS * len(SHOTS) * DRAWS * LAYERS

EAGER = """
import sys
import polars as pl
table = pl.read_parquet(sys.argv[1])
last = table.filter(pl.col("last_checkpoint"))
keys = ["task", "shots", "cell_id"]
means = last.filter(pl.col("last_layer")).group_by(keys).agg(pl.col("upstream_accuracy", "downstream_accuracy").mean())
layers = last.group_by([*keys, "layer"]).agg(pl.col("downstream_accuracy").mean())
best = layers.sort("downstream_accuracy").group_by(keys).last()
print(means.height, best.height)
"""


def write_table(path: Path, checkpoints: int, seed: int = 0) -> int:
    """A made-up results table, a cell at a time; the number of its rows."""
    rng = np.random.default_rng(seed)
    writer, num_rows = None, 0
    for start in range(0, CELLS, 100):
        table = pl.concat([_cell(i, checkpoints, rng) for i in range(start, start + 100)]).to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
        num_rows += table.num_rows
    assert writer is not None
    writer.close()
    return num_rows


def _cell(index: int, checkpoints: int, rng: np.random.Generator) -> pl.DataFrame:
    shape = (checkpoints, TASKS, len(SHOTS), DRAWS, LAYERS)
    step, task, shots, draw, layer = (axis.ravel() for axis in np.indices(shape))
    final = 1 - np.exp(-3 * rng.beta(2, 2))
    upstream = final * (0.6 + 0.4 * (step + 1) / checkpoints)
    tops, alphas = np.linspace(0.55, 0.95, TASKS)[task], np.linspace(1, 8, TASKS)[task]
    law = tops * (1 - (1 - upstream) ** alphas) * (0.7 + 0.1 * shots) * (0.6 + 0.4 * (layer + 1) / LAYERS)
    downstream = np.clip(law - rng.gamma(1.5, 0.02) + rng.normal(0, 0.005, step.size), 0, 1)
    columns = {
        "cell_id": f"{index:016x}",
        "family": ("vit", "mixer", "resnet")[index % 3],
        "size": ("Ti", "S", "B", "L")[index // 3 % 4],
        "fraction": (0.1, 0.3, 1.0)[index // 12 % 3],
        "head_weight_decay": (0.03, 3.0)[index // 36 % 2],
        "seed": index // 72,
        "params": 10**7 * 4 ** (index // 3 % 4),
        "step": (step + 1) * 1000,
        "upstream_accuracy": upstream,
        "upstream_num_test": 50_000,
        "task": pl.Series([f"task{i:02d}" for i in range(TASKS)])[task],
        "protocol": "ridge",
        "shots": np.array(SHOTS)[shots],
        "draw": draw,
        "layer": layer,
        "num_layers": LAYERS,
        "last_layer": layer == LAYERS - 1,
        "downstream_accuracy": downstream,
        "downstream_num_test": 10_000,
        "method": "made up",
        "last_checkpoint": step == checkpoints - 1,
    }
    frame = pl.select(pl.int_range(step.size).alias("row")).with_columns(
        **{name: value if isinstance(value, pl.Series) else _column(value) for name, value in columns.items()}
    )
    absent = [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in columns]
    return frame.with_columns(absent).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def _column(value: object) -> "pl.Series | pl.Expr":
    return pl.Series(value) if isinstance(value, np.ndarray) else pl.lit(value)


def measure(command: list[str]) -> tuple[float, float, str]:
    """(wall seconds, peak GiB of the process, what it printed)."""
    program = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], check=True, stdout=subprocess.PIPE, text=True)\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20\n"
        "import json; print(json.dumps([peak, done.stdout]))\n"
    )
    began = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", program, *command], check=True, stdout=subprocess.PIPE, text=True)
    wall = time.perf_counter() - began
    peak, said = json.loads(run.stdout)
    return wall, peak, said


def main() -> None:
    """Prints one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=1, help=f"{ROWS_A_CHECKPOINT:,} rows each")
    parser.add_argument("--draws", type=int, default=20, help="bootstrap draws")
    parser.add_argument("--rival", action=argparse.BooleanOptionalAction, default=True, help="measure the rival too")
    parser.add_argument("--table", type=Path, help="an earlier table, to be read again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.table or Path(folder) / "results.parquet"
        if not path.exists():
            write_table(path, options.checkpoints)
        rows = pl.scan_parquet(path).select(pl.len()).collect().item()
        print(f"{rows:,} rows, {os.path.getsize(path) / 2**20:.0f} MiB")  # noqa: PTH202  one number
        wall, peak, said = measure([UPSHOT, "reduce", str(path), "--json", "--draws", str(options.draws)])
        num = len(json.loads(said)["tasks"])
        print(
            f"upshot reduce: {wall:.1f} s, peak {peak:.2f} GiB, {num} frontiers with {options.draws} draws", flush=True
        )
        if options.rival:
            theirs, their_peak, _ = measure([sys.executable, "-c", EAGER, str(path)])
            print(f"eager polars, no frontier: {theirs:.1f} s, peak {their_peak:.2f} GiB; ratio {theirs / wall:.2f}")


if __name__ == "__main__":
    main()
