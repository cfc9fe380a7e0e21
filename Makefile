# Each target makes .venv and installs by itself; `make demo` and `make test` are all that a new machine needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# One thread for each process that tests: small tensors gain nothing from more, and threads of several processes wait for
# each other. JOBS=0 tests in one process.
JOBS   ?= logical
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal

.PHONY: install demo test test-slow lint typecheck bench clean

install: $(STAMP)

# torch first and by itself: the pinned version is a CPU build where one is offered, a range may be a CUDA build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt -e ".[dev,gguf,peft]" --config-settings editable_mode=compat
	touch $@

demo: $(STAMP)
	$(BIN)/pluralpref demo $(DEMO_ARGS)

test: $(STAMP)
	$(PYTEST) -m "not slow and not bench" $(TEST_ARGS)

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not bench" $(TEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(STAMP)
	$(BIN)/mypy -p pluralpref

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt -e ".[dev,gguf,peft,bench]" --config-settings editable_mode=compat
	$(BIN)/python -m pytest -m bench $(TEST_ARGS)
	$(BIN)/python benchmarks/marginal_cost.py
	$(BIN)/python benchmarks/objective_overhead.py
	$(BIN)/python benchmarks/posterior_samplers.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
