# demo and test are all a newcomer needs: each makes its virtual environment when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint bench gpu-check gpu-bench clean

demo: $(VENV)/.runtime
	$(BIN)/tune run examples/demo/study.yaml --out runs --fresh

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

# Both need an NVIDIA GPU, and leave results under benchmarks/results/.
gpu-check: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu_check

gpu-bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu_bench

$(VENV)/.runtime: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info runs/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
