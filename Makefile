# The two commands of README.md, and the long ones beside them.
PYTHON ?= python3
BIN = .venv/bin
.PHONY: demo test soak lint bench clean

demo: .venv/ready
	$(BIN)/llmlab study experiments/quickstart.py

test: .venv/tests
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m "not soak" -n auto --maxprocesses 4 --dist worksteal

soak: .venv/tests
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m soak

lint: .venv/tests
	$(BIN)/python -m pip install -q -e '.[dev]'
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

.venv/ready: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/tests: .venv/ready
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

bench: .venv/ready
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/llmlab bench

clean:
	rm -rf .venv build *.egg-info
