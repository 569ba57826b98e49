# make run     the page on http://127.0.0.1:7860 (GRADIO_SERVER_PORT=8000 make run: another port)
# make test    lint, types, then every test; the browser tests find or install a Chromium
#
# make test-gpu PY=python3    speed and memory on one GPU, with a Python that has torch, transformers, peft and safetensors
#                             (GPU="--size tiny --device cpu": the same script without one)
#
# The first two make the virtual environment .venv first and re-install only when a requirements file, the Python version or
# TORCH_INDEX changed. Options:
#   PYTHON=python3.12    the interpreter to build .venv from (3.11 or newer)
#   TORCH_INDEX=URL      where torch is installed from first, to choose a CPU or CUDA build (see README)
#   APP="--models DIR"   more arguments for the page (app.py --help)
#   TESTS="-k report"    more arguments for pytest

PYTHON ?= python3
TORCH_INDEX ?=
APP ?=
TESTS ?=
GPU ?=
PY = .venv/bin/python
PIP = $(PY) -m pip install --disable-pip-version-check --quiet

.PHONY: run test test-gpu check-python env-run env-test

run: env-run
	$(PY) app.py $(APP)

test: env-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@CHROMIUM="$$($(PY) tests/find_chromium.py --install)"; export CHROMIUM; \
	marks="not gpu and not long"; \
	if command -v nvidia-smi >/dev/null 2>&1 && $(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then marks="not long"; fi; \
	$(PY) -m pytest -m "$$marks" $(TESTS) tests/unit tests/integration tests/browser tests/hostile

test-gpu:
	$(PY) tests/bench/gpu_repair.py $(GPU)

env-run: FILES = requirements.txt
env-test: FILES = requirements.txt tests/requirements.txt

# The stamp holds a hash of what the environment was built from. It lies inside .venv, so that it goes with it.
env-run env-test: check-python
	@stamp=.venv/.$@; \
	want=`$(PYTHON) -c 'import hashlib, sys; print(hashlib.sha256(b"".join(open(f, "rb").read() for f in sys.argv[2:]) + repr((sys.version_info[:2], sys.argv[1])).encode()).hexdigest())' "$(TORCH_INDEX)" $(FILES)`; \
	version=`$(PYTHON) -c 'import sys; print(sys.version_info[:2])'`; \
	if [ "`$(PY) -c 'import sys; print(sys.version_info[:2])' 2>/dev/null`" != "$$version" ]; then \
		echo "Making the virtual environment .venv ..."; \
		rm -rf .venv && $(PYTHON) -m venv .venv || exit 1; \
	fi; \
	if [ "`cat $$stamp 2>/dev/null`" != "$$want" ]; then \
		echo "Installing the requirements; the first time takes a few minutes ..."; \
		if [ -n "$(TORCH_INDEX)" ]; then \
			$(PIP) --index-url "$(TORCH_INDEX)" "`grep '^torch==' requirements.txt`" || exit 1; \
		fi; \
		for file in $(FILES); do $(PIP) -r $$file || exit 1; done; \
		echo $$want > $$stamp; \
	fi

check-python:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || \
		{ echo "There is no $(PYTHON) here; install Python 3.11 or newer, or name one: make PYTHON=python3.12 run" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "`"$(PYTHON)" -V 2>&1` is too old: 3.11 or newer is needed; name one: make PYTHON=python3.12 run" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) comes without venv; install it (Debian, Ubuntu: apt-get install python3-venv) and try again." >&2; exit 1; }
