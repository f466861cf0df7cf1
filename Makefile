# Every target sets up what it needs: .venv is made once and again when the pins change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: env test lint unit soak mutants bench gpu programs demo docs clean

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { echo "error: python3 has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

test: lint unit

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# As many workers as cores; a file of tests stays on one. Bytecode first: many processes of the tests import weft.
unit: env
	$(BIN)/python -m compileall -q weft tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope

# The full counts of every campaign; `make test` runs a seeded sample of the same tests.
soak: env
	$(BIN)/python -m benchmarks.soak

# Plants faults and counts those that are found: in the kernels, by their tests; anywhere else, by the sweep.
mutants: env
	$(BIN)/python -m tests.kernels.mutate
	$(BIN)/python -m tests.sweep.planted --result

bench: env
	$(BIN)/python -m benchmarks.run

# Everything that needs a GPU, from what the tree holds; nothing is installed. STAGES names some of them only.
gpu:
	@python=$(BIN)/python; [ -x $$python ] || python=$(PYTHON); $$python -m benchmarks.gpu $(STAGES)

# The programs that it runs, after a change of the shipped specs or of how they are lowered.
programs: env
	$(BIN)/python -m benchmarks.gpu.programs

demo: env
	$(BIN)/python -m examples.demo

docs: env
	$(BIN)/python -m weft.frontends.document docs/spec.md

clean:
	rm -rf $(VENV) out build dist
