# Two commands do all the set-up: `make demo` and `make test`. Each makes its own .venv where there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test soak lint bench clean

demo: $(VENV)/.demo
	$(BIN)/upshot demo

test: $(VENV)/.dev
	sh tests/install_packages.sh --accounting --browser
	$(BIN)/pytest -n 2 --dist loadgroup

# Every fault, also those that take long, on a private Slurm cluster; about half an hour on two cores.
soak: $(VENV)/.dev
	sh tests/install_packages.sh --accounting
	$(BIN)/pytest tests/faults tests/orchestrator/test_slurm_pipeline.py -m "slurm or soak"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	sh tests/install_packages.sh --accounting
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.frontier
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.conflicts
	$(BIN)/python -m benchmarks.reduction
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.checkpoint_stall

clean:
	rm -rf $(VENV) build *.egg-info

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
