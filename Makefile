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
FORMATTED := $(CPP) $(wildcard bench/bounds/*)
SHELL := /bin/bash
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint format bench bench-kernels peers bench-peers train-kws kws-study kws-sparsity kws-first-layer \
  digits-study docs wheel fpga-samples fpga-report fuzz sanitize test-emulated memcheck clean

demo: $(VENV)/.core
	$(BIN)/csengine demo

# One worker per core; files stay whole, because their tests share networks and emulated hardware.
test: $(VENV)/.test lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

# Our own speed: networks, every kernel beside what bounds it, how time grows; then the tables and pictures. Five to
# seven minutes after installation. RESULTS=bench/results/NAME keeps what another machine needs beside what is there: for
# docs/performance-NAME.md. `make bench-kernels` measures the kernels and their bounds alone, in two minutes.
RESULTS ?= bench/results
BENCH_CPU ?= $(shell echo $$(($$(nproc) - 1)))
bench: $(VENV)/.bench
	mkdir -p $(RESULTS)
	for model in kws kws_paper; do \
	  $(BIN)/csengine bench $$model -b 1,8,64 --cpus $(BENCH_CPU) --runs 1000 --json -o $(RESULTS)/$$model.json || exit; done
	$(MEASURE_KERNELS)
	$(BIN)/python bench/scaling.py --output $(RESULTS)
	$(BIN)/python bench/numba_twin.py --output $(RESULTS)
	$(BIN)/python bench/report.py

define MEASURE_KERNELS
$(BIN)/python bench/bounds.py --output $(RESULTS)
taskset -c $(BENCH_CPU) $(BIN)/python -m pytest bench -q --benchmark-enable --benchmark-max-time=0.25 \
  --benchmark-columns=median,iqr,rounds --benchmark-json=$(RESULTS)/kernels.json
endef
bench-kernels: $(VENV)/.bench
	mkdir -p $(RESULTS)
	$(MEASURE_KERNELS)
	$(BIN)/python bench/report.py

# Other runtimes, each in an environment of its own, for `csengine bench --against`.
# PEERS='onnxruntime openvino torch scipy deepsparse' adds DeepSparse, whose licence allows evaluation only.
PEERS ?= onnxruntime openvino torch scipy
peers: $(PEERS:%=.venv-peers/%/.ready)

# The same functions in all of them; then the tables and pictures. 39 minutes after installation on two Zen 3 cores, with
# DeepSparse.
bench-peers: $(VENV)/.bench peers
	$(BIN)/python bench/against_peers.py --peers '$(PEERS)' --output $(RESULTS)
	$(BIN)/python bench/report.py

# The documentation as a web site in build/site.
docs: $(VENV)/.test
	$(BIN)/python -m mkdocs build --strict -d build/site

# A wheel for this Python in dist/, tried in an environment that has nothing else. cibuildwheel makes those of all Pythons.
wheel: $(VENV)/.test
	rm -rf dist build/wheel-env
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/python -m pip install --quiet dist/*.whl
	cd build && wheel-env/bin/csengine compare kws --backend cpp,reference && wheel-env/bin/csengine demo

# Accuracy against sparsity on handwritten digits. About fifteen minutes on one core.
digits-study: $(VENV)/.bench
	$(BIN)/python examples/digits/study.py
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

# Accuracy against sparsity of the keyword-spotting network: one seed, a short training. About an hour on one core.
KWS_SHORT := --seed 0 --teacher-epochs 10 --output runs/short
kws-sparsity: $(VENV)/.bench
	tools/system_packages.sh $(SPEECH)
	$(BIN)/python examples/keyword_spotting/sparsity.py $(KWS_SHORT)
	$(BIN)/python bench/report.py

# A first layer with 5 of 25 weights beside the paper's 12, in as short a training.
kws-first-layer: $(VENV)/.test
	tools/system_packages.sh $(SPEECH)
	$(BIN)/python examples/keyword_spotting/study.py --variant teacher --variant sparse-sparse \
	  --variant sparse-sparse-first $(KWS_SHORT) --epochs 6 --results examples/keyword_spotting/results/first-layer.json

# More samples of the shipped networks on emulated hardware than the tests try.
fpga-samples: $(VENV)/.test
	CSENGINE_FPGA_SAMPLES=200 $(BIN)/python -m pytest tests/fpga/test_xrt_kws.py -s

# The figures of docs/fpga.md: clocks, resources, held-out words through XRT, mutants of the RTL; then the tables and
# pictures. What is recorded for the same hardware is kept. About an hour on two cores from nothing.
fpga-report: $(VENV)/.bench
	for what in clocks words waves mutants resources chips kernels; do $(BIN)/python bench/fpga.py $$what || exit; done
	$(BIN)/python bench/report.py

# More mutants than the tests try.
fuzz: $(VENV)/.test
	$(BIN)/python tests/test_fuzz.py $$RANDOM 200000

# The kernels of every tier that runs here, and mutants, under the address sanitizer; what threads share, under the
# thread sanitizer; undefined behaviour under both. Python itself is not built with them, so their library comes first,
# with that of C++, whose exceptions it has to find; what Python never frees is no leak, and NumPy's BLAS, which is not
# built with them, keeps to one thread. About ten minutes.
SANITIZE := -fsanitize=undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -fsanitize=
SANITIZED_address := tests/test_kernels.py tests/test_backends.py tests/test_fuzz.py -k 'not numba'
SANITIZED_thread := tests/test_kernels.py tests/test_engine.py -k 'threads_share'
sanitize: sanitize-address sanitize-thread
sanitize-address: RUNTIME := libasan.so
sanitize-thread: RUNTIME := libtsan.so
sanitize-%: $(VENV)/.test
	$(BIN)/python -m pip install --quiet 'setuptools>=77' 'pybind11>=2.13'
	CC='$(CC) $(SANITIZE)$*' CXX='$(CXX) $(SANITIZE)$*' \
	  $(BIN)/python setup.py -q build --build-base build/sanitize-$* --build-lib build/sanitize-$*/lib
	grep -q $(RUNTIME) build/sanitize-$*/lib/csengine/_native*.so  # it is made with it
	PYTHONPATH=build/sanitize-$*/lib LD_PRELOAD='$(foreach library,$(RUNTIME) libstdc++.so,$(shell $(CC) -print-file-name=$(library)))' \
	  OPENBLAS_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 CSENGINE_FUZZ_MUTANTS=2000 \
	  $(BIN)/pytest -q --capture=sys -p no:cacheprovider $(SANITIZED_$*)

# The kernels of all tiers on any processor with AVX2: SIMDe emulates AVX-512, plain C++ the tiles of AMX.
EMULATED := -DCS_EMULATE_AVX512 -mavx2 -mfma -mbmi -mbmi2 -mpopcnt -mlzcnt -Wno-psabi
test-emulated: $(VENV)/.test
	tools/system_packages.sh libsimde-dev
	$(BIN)/python -m pip install --quiet 'setuptools>=77' 'pybind11>=2.13'
	CC='$(CC) $(EMULATED)' CXX='$(CXX) $(EMULATED)' \
	  $(BIN)/python setup.py -q build --build-base build/emulated --build-lib build/emulated/lib
	cd build/emulated/lib && $(abspath $(BIN))/python -c \
	  'from csengine.backends import cpp; assert all(cpp.tiers().values()), cpp.tiers()'
	PYTHONPATH=build/emulated/lib $(BIN)/pytest -q -p no:cacheprovider \
	  tests/test_kernels.py tests/test_backends.py -k 'not numba'
	CXX='$(CXX) $(EMULATED)' $(BIN)/python bench/bounds.py --quick --output build/emulated

# The shipped networks under valgrind.
memcheck: $(VENV)/.core
	tools/system_packages.sh valgrind
	$(BIN)/python tools/memcheck.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --editable '.[bench,report]'
	touch $@

.venv-peers/%/.ready: bench/peers/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

# The packages come first: csengine is built with an FPGA host where XRT is.
$(VENV)/.test: $(SOURCES) | $(BIN)/python
	tools/system_packages.sh espeak-ng $(XRT)
	$(BIN)/python -m pip install --quiet --editable '.[torch,fpga,test,dev,docs]'
	touch $(VENV)/.core $@

clean:
	rm -rf $(VENV) build dist csengine/*.so csengine.egg-info
