# Two commands do everything: `make demo` and `make test`. Both build .venv when it is missing or older than the sources
# of the native core: `make demo` with what Thrifty needs to run, `make test` adds what its tests need (torch, …).
# TORCH picks the torch to install, PYTHON the interpreter.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
PEERS := .venv-peers
KVPRESS := .venv-kvpress
CLIENTS := .venv-clients
AIPERF := .venv-aiperf
BIN := $(VENV)/bin
NATIVE := $(shell find src/thrifty/kernels/native -name '*.cpp' -o -name '*.hpp' -o -name '*.inc' 2>/dev/null)
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
# The requirements of an extra of pyproject.toml, a line each.
EXTRA = $(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")'
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Two workers take a half each, and one that is done takes of what the other has left.
TESTS := OMP_NUM_THREADS=1 THRIFTY_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test unit clients lint types imports sanitize browser benchmark peers kvpress kv-cache docs wheel clean

demo: $(VENV)/.ready
	$(BIN)/thrifty fit smollm2-135m --memory 150MB --context 4096 -o recipe.toml --report report.html
	$(BIN)/thrifty bench smollm2-135m --recipe recipe.toml

test: $(VENV)/.complete
	$(TESTS) -m "not slow and not clients"

unit: $(VENV)/.complete
	THRIFTY_FEW_EXAMPLES=1 $(TESTS) -m "not slow and not model and not long and not clients"

# Other people's clients against a server in a process of its own, each in an environment that knows nothing of Thrifty:
# some minutes, and some gigabytes of packages. npm, where it is there, brings its package. THRIFTY_CLIENTS_URL names a
# server that runs already (THRIFTY_CLIENTS_MODEL its model, THRIFTY_API_KEY its key).
clients: $(VENV)/.complete $(CLIENTS)/.ready $(AIPERF)/.ready
	$(CLIENTS)/bin/python -m pytest tests/clients --confcutdir=tests/clients -m clients

lint: $(VENV)/.complete
	$(BIN)/ruff check src tests training benchmarks docs
	$(BIN)/ruff format --check src tests training benchmarks docs
	find src tests -name '*.[ch]pp' | xargs $(BIN)/clang-format --dry-run --Werror

types: $(VENV)/.complete
	$(BIN)/mypy

imports: $(VENV)/.complete
	$(BIN)/lint-imports

sanitize: $(VENV)/.complete
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/native/run.sh

# Debian's Chromium, in which the tests open the report; without it they are skipped.
browser:
	command -v chromium chromedriver || (apt-get update -qq && apt-get install -y --no-install-recommends chromium chromium-driver)

benchmark: $(VENV)/.complete
	$(BIN)/python benchmarks/decode_vs_transformers.py

# Thrifty against llama.cpp, OpenVINO GenAI and transformers, in an environment of its own (llama-cpp-python compiles for
# ten minutes), then at most 45 minutes on a quiet machine. ARGUMENTS=--quick: at most 8.
peers: $(PEERS)/.ready
	$(PEERS)/bin/python benchmarks/peers.py $(ARGUMENTS)

# kvpress's own environment: it pins an older transformers.
kvpress: $(KVPRESS)/.ready

# Every cache technique at several budgets with kvpress beside it, into docs/kv-cache.md: some hours on a quiet machine.
kv-cache: $(VENV)/.complete $(KVPRESS)/.ready
	$(BIN)/python benchmarks/kv_cache_table.py $(ARGUMENTS)

docs: $(VENV)/.complete
	$(BIN)/python docs/generate_techniques.py

# The wheel for Linux, into dist/, for glibc 2.27 and later and the C++ runtime of GCC 7 and later, as NumPy's: it fails
# where a newer symbol came in (src/thrifty/kernels/native/src/older_runtime.cpp).
wheel: $(VENV)/.ready
	$(EXTRA) wheel > $(VENV)/wheel.txt
	$(INSTALL) --requirement $(VENV)/wheel.txt
	rm -rf build/wheel dist
	$(BIN)/python -m build --wheel --outdir build/wheel --config-setting=cmake.define.THRIFTY_PORTABLE_WHEEL=ON
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --plat manylinux_2_27_$$(uname -m) --wheel-dir dist build/wheel/*.whl

$(VENV)/.ready: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.complete: $(VENV)/.ready
	$(INSTALL) $(TORCH)
	$(EXTRA) dev > $(VENV)/dev.txt
	$(INSTALL) --requirement $(VENV)/dev.txt
	touch $@

$(PEERS)/.ready: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[peers]'
	touch $@

$(KVPRESS)/.ready: Makefile
	test -x $(KVPRESS)/bin/python || $(PYTHON) -m venv $(KVPRESS)
	$(KVPRESS)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(KVPRESS)/bin/python -m pip install --quiet --disable-pip-version-check 'kvpress==0.5.5'
	touch $@

$(CLIENTS)/.ready: tests/clients/requirements.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt
	if command -v npm; then npm install --prefix $(CLIENTS) --no-audit --no-fund openai; fi
	touch $@

# aiperf pins what the other clients have newer.
$(AIPERF)/.ready: tests/clients/requirements.txt
	test -x $(AIPERF)/bin/python || $(PYTHON) -m venv $(AIPERF)
	$(AIPERF)/bin/python -m pip install --quiet --disable-pip-version-check 'aiperf>=0.10'
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) $(KVPRESS) $(CLIENTS) $(AIPERF) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
