# Two commands matter: `make demo` and `make test`. Both install what they need into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The Xilinx Runtime, through which tests drive emulated FPGAs.
XRT := libxrt1 libxrt-dev uuid-dev
# Synthesizers that speak the data set.
SPEECH := espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts
CPP := $(wildcard cpp/*.cpp cpp/*.h cpp/kernels/*.cpp cpp/kernels/*.h FPGA/*/*.cpp FPGA/*/*.h)
SOURCES := setup.py pyproject.toml $(CPP)
SHELL := /bin/bash
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint format bench bench-peers train-kws kws-study fpga-samples fuzz clean

demo: $(VENV)/.core
	$(BIN)/csengine demo

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# Our own speed: networks, every kernel, how time grows; then the tables and pictures. Under 10 minutes.
BENCH_CPU ?= $(shell echo $$(($$(nproc) - 1)))
bench: $(VENV)/.bench
	for model in kws kws_paper; do \
	  $(BIN)/csengine bench $$model -b 1,8,64 --cpus $(BENCH_CPU) --runs 1000 --json -o bench/results/$$model.json || exit; done
	taskset -c $(BENCH_CPU) $(BIN)/python -m pytest bench -q --benchmark-enable --benchmark-max-time=0.5 \
	  --benchmark-columns=median,iqr,rounds --benchmark-json=bench/results/kernels.json
	$(BIN)/python bench/scaling.py
	$(BIN)/python bench/report.py

# The same functions in other runtimes, each in an environment of its own. Under 40 minutes once these are installed.
# PEERS='onnxruntime openvino torch scipy deepsparse' adds DeepSparse, whose licence allows evaluation only.
PEERS ?= onnxruntime openvino torch scipy
bench-peers: $(VENV)/.bench $(PEERS:%=.venv-peers/%/.ready)
	$(BIN)/python bench/against_peers.py --peers '$(PEERS)'
	$(BIN)/python bench/report.py

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

# More samples of the shipped networks on emulated hardware than the tests try.
fpga-samples: $(VENV)/.test
	CSENGINE_FPGA_SAMPLES=200 $(BIN)/python -m pytest tests/fpga/test_xrt_kws.py -s

# More mutants than the tests try.
fuzz: $(VENV)/.test
	$(BIN)/python tests/test_fuzz.py $$RANDOM 200000

$(VENV)/.core: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --editable '.[bench,report]'
	touch $@

.venv-peers/%/.ready: bench/peers/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/.test: $(VENV)/.core
	tools/system_packages.sh espeak-ng $(XRT)
	$(BIN)/python -m pip install --quiet --editable '.[torch,fpga,test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build csengine/*.so csengine.egg-info
