# make train   set up .venv and run the main job: digits, backward pass by hand, proven before training
# make test    set up .venv, then lint and the whole test suite
# make suite   the test suite alone; TESTS="tests/check -k softmax" for a part of it
# make proofs  its core: the layers' float32 proofs, check, explain and train
# make docs    the READMEs and the API reference as pages, into build/docs
# make wheel   build the sdist and the wheel into dist/, and try them, in an empty folder too
#
# PYTHON=python3.13 chooses the interpreter (3.11 or later), which gets a .venv-3.13 of its own.
# PLATFORM=cuda (or gpu, tpu) runs the tests on the device that is there; JOBS=2 on two devices.
# EXTRAS=dev,reference adds torch to the tests.

PYTHON ?= python3
PLATFORM ?= cpu
EXTRAS ?= dev$(ACCELERATOR)
CONFIG ?= digits_mlp
JOBS ?= $(if $(filter cpu,$(PLATFORM)),auto,0)
TESTS ?=

comma := ,
ACCELERATOR := $(if $(filter cuda gpu,$(PLATFORM)),$(comma)gpu)$(if $(filter tpu,$(PLATFORM)),$(comma)tpu)
INTERPRETER := $(shell .ci/interpreter $(PYTHON))
NUMBER := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
VERSION := $(if $(INTERPRETER),$(shell $(INTERPRETER) $(NUMBER)))
VENV := $(if $(filter python python3,$(PYTHON)),.venv,.venv-$(VERSION))
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(VERSION)
READY_TO_TEST := $(READY)-$(subst $(comma),-,$(EXTRAS))
CORE := tests/test_proof.py tests/check tests/explain tests/train tests/app -k 'float32 or not test_proof.py'

.PHONY: help train test suite proofs docs wheel lint format clean

help:
	@sed '/^$$/,$$d; s/^#//; s/^ //' $(MAKEFILE_LIST)

train: $(READY)-train
	$(BIN)/jaxbp train $(CONFIG) --run.overwrite

test: lint suite

# Of pytest's plugins only those that the suite uses: what else a machine has cannot disturb it.
suite: $(READY_TO_TEST)
	JAXBP_TEST_PLATFORM=$(PLATFORM) PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
		$(BIN)/python -m pytest -p xdist -p hypothesispytest -n $(JOBS) --dist worksteal $(TESTS)

proofs:
	$(MAKE) suite TESTS="$(CORE)"

docs: $(READY)-dev-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --config-file .ci/docs/mkdocs.yml
	@echo "written: build/docs/index.html"

wheel: $(READY)-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python .ci/try_wheel.py dist

lint: $(READY_TO_TEST)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# One stamp an interpreter and set of extras, so that a second run starts at once.
$(READY)-%: pyproject.toml constraints.txt
	@test -n "$(VERSION)" || { echo "$(PYTHON): no interpreter here that can make a venv"; exit 2; }
	@$(INTERPRETER) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "jaxbp needs Python 3.11 or later; $(PYTHON) is $(VERSION) (make PYTHON=…)"; exit 2; }
	@test "$$($(BIN)/python $(NUMBER) 2>/dev/null)" = "$(VERSION)" || $(INTERPRETER) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[$(subst -,$(comma),$*)]"
	@touch $@
