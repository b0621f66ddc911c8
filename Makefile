# The menu. `make` alone prints it; every target works on a machine that has Python 3.11+, make, git and a C compiler.
#
# uv is used where it is installed; where it is not, a private copy goes to .uv/. Nothing outside this folder changes.

PYTHON ?= python3
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .uv/bin/uv)
BIN := .venv/bin
PROJECTS := $(wildcard pyproject.toml core/pyproject.toml plugins/*/pyproject.toml native/*/pyproject.toml contrib/*/pyproject.toml)
EDITABLES := $(patsubst %/pyproject.toml,-e %,$(wildcard core/pyproject.toml plugins/*/pyproject.toml))
WORKERS ?= 2
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
CHOSEN := not timing$(if $(CHROMIUM),, and not browser)
export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types docs bench native sanitize arm pins clean

help: ## this menu
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/setup.stamp ## create .venv with every package of the workspace and the tools

demo: .venv/demo.stamp ## compress the example model and print what was gained (under two minutes)
	$(BIN)/pumice demo

test: setup lint types ## lint, type-check and run every test, with coverage
	$(BIN)/pytest -m timing
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --cov --cov-report=term -m "$(CHOSEN)"
	$(if $(CHROMIUM),,@echo "No Chromium here: the report was not opened in a browser. Install the package chromium to do so.")

lint: setup ## style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: setup ## mypy --strict over the product
	$(BIN)/mypy

docs: setup ## build the documentation into build/docs
	$(BIN)/python docs/pages.py
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs
	@echo open build/docs/index.html

bench: setup ## run every benchmark and write docs/benchmarks.md (hours; ONLY=bench_int8 runs one, QUICK=1 takes minutes)
	$(BIN)/python docs/benchmarks.py $(ONLY) $(if $(QUICK),--quick)

native: setup ## rebuild the C kernels after an edit of their sources
	$(BIN)/python native/cpu/cmake/rebuild.py

sanitize: setup ## the kernels' C tests under the address, undefined-behaviour and thread sanitizers
	$(BIN)/python native/cpu/cmake/checks.py sanitize

arm: setup ## the kernels' C tests for AArch64 under qemu (needs gcc-aarch64-linux-gnu and qemu-user)
	$(BIN)/python native/cpu/cmake/checks.py arm

pins: setup ## resolve the newest versions and write them into pyproject.toml and constraints.txt
	$(BIN)/python .ci/pins.py $(UV)

clean: ## remove everything that was built or cached
	rm -rf .venv .uv build native/*/build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* uv.lock
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- how the environment is made --------------------------------------------------------------------------------------

.venv/setup.stamp: $(PROJECTS) constraints.txt | $(UV)
	$(UV) sync --quiet --all-packages --all-groups --python $(PYTHON)
	@touch .venv/setup.stamp .venv/demo.stamp

.venv/demo.stamp: $(PROJECTS) constraints.txt | $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt $(EDITABLES)
	@touch $@

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv
