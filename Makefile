# Two commands matter: `make demo` and `make test`. Both install what they need into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Synthesizers that speak the data set.
SPEECH := espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts
SOURCES := setup.py pyproject.toml $(wildcard cpp/*.cpp cpp/*.h cpp/kernels/*.cpp cpp/kernels/*.h)
SHELL := /bin/bash
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint format bench train-kws kws-study fuzz clean

demo: $(VENV)/.core
	$(BIN)/csengine demo

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard cpp/*.cpp cpp/*.h cpp/kernels/*.cpp cpp/kernels/*.h)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard cpp/*.cpp cpp/*.h cpp/kernels/*.cpp cpp/kernels/*.h)

bench: $(VENV)/.core
	$(BIN)/csengine bench $(shell $(BIN)/python -c "from csengine.cli import models; print(models.shipped('kws'))")

# The shipped models, from nothing: synthesize speech, train, quantize, pack. About half an hour on two cores.
train-kws: $(VENV)/.test
	tools/system_packages.sh $(SPEECH)
	$(BIN)/python examples/keyword_spotting/train.py --all
	$(BIN)/python examples/keyword_spotting/recordings.py data/synthetic_commands
	$(BIN)/python examples/keyword_spotting/package.py

# Four variants, three seeds: the accuracy table. About an hour and a half on two cores.
kws-study: $(VENV)/.test
	tools/system_packages.sh $(SPEECH)
	$(BIN)/python examples/keyword_spotting/study.py

# More mutants than the tests try.
fuzz: $(VENV)/.test
	$(BIN)/python tests/test_fuzz.py $$RANDOM 200000

$(VENV)/.core: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/.core
	tools/system_packages.sh espeak-ng
	$(BIN)/python -m pip install --quiet --editable '.[torch,test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build csengine/*.so csengine.egg-info
