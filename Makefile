# make train   set up .venv and run the main job: digits, backward pass by hand, proven before training
# make test    set up .venv, then lint and the whole test suite
# PYTHON=python3.12 chooses the interpreter (3.11 or later); EXTRAS=dev,reference adds torch to the tests.

PYTHON ?= python3
EXTRAS ?= dev
CONFIG ?= digits_mlp
JOBS ?= auto

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
BIN := .venv/bin
comma := ,
READY := .venv/ready-$(VERSION)

.PHONY: help train test lint format clean

help:
	@sed -n 's/^# //p' $(MAKEFILE_LIST)

train: $(READY)-train
	$(BIN)/jaxbp train $(CONFIG) --run.overwrite

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(READY)-$(subst $(comma),-,$(EXTRAS))
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis

# One stamp an interpreter and set of extras, so that a second run starts at once.
$(READY)-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "jaxbp needs Python 3.11 or later; $(PYTHON) is $(VERSION) (make PYTHON=…)"; exit 2; }
	@test "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$(VERSION)" \
		|| $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[$(subst -,$(comma),$*)]"
	@touch $@
