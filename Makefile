# Two commands do all the set-up: `make demo` and `make test`. Each makes its own .venv where there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
XLA := $(VENV)-xla

.PHONY: demo test test-xla soak lint bench clean

demo: $(VENV)/.demo
	$(BIN)/upshot demo

test: $(VENV)/.dev
	sh tests/install_packages.sh --accounting --browser --shells --latex
	$(BIN)/pytest -n 2 --dist loadgroup

# What a TPU runs, on torch-xla's runtime for CPUs. torch-xla wants a torch of its own, so this has an environment of its
# own too (.venv-xla); checkpoints go from there to .venv and back.
test-xla: $(VENV)/.dev $(XLA)/.dev
	sh tests/install_packages.sh
	PJRT_DEVICE=CPU UPSHOT_REQUIRE_XLA=1 UPSHOT_MAIN_PYTHON=$(CURDIR)/$(BIN)/python $(XLA)/bin/pytest tests/xla -n 2 --dist loadgroup

# Every fault, also those that take long, on a private Slurm cluster, 200 cells beside an ill W&B server, a silent one, and
# torch.compile; an hour or two on two cores.
soak: $(VENV)/.dev
	sh tests/install_packages.sh --accounting
	$(BIN)/pytest tests/faults tests/orchestrator/test_slurm_pipeline.py tests/orchestrator/test_live.py tests/orchestrator/test_syncing.py tests/models/test_train.py -m "slurm or soak"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	sh tests/install_packages.sh --accounting --browser
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.frontier
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.conflicts
	$(BIN)/python -m benchmarks.reduction
	$(BIN)/python -m benchmarks.report_page
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.checkpoint_stall
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.sync
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.features
	$(BIN)/python -m benchmarks.fewshot

clean:
	rm -rf $(VENV) $(XLA) build *.egg-info

$(VENV)/.demo: pyproject.toml
	@echo "Installing into $(VENV); torch alone is several GB, so the first time takes a while."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: pyproject.toml
	@echo "Installing into $(VENV); torch alone is several GB, so the first time takes a while."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(XLA)/.dev: pyproject.toml
	@echo "Installing into $(XLA); torch alone is several GB, so the first time takes a while."
	test -x $(XLA)/bin/python || $(PYTHON) -m venv $(XLA)
	$(XLA)/bin/python -m pip install --quiet --editable ".[xla,dev]"
	touch $@
