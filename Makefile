# make demo     train, export and time a network on real images; ends with a table (minutes)
# make check    everything that .ci/run asks for: format, lint, types, layers, tests
# make study    the tests of `make check` on more networks (minutes)
# make format   put the format right
# make install  what `make check` installs, and nothing else
# make clean    remove what these left behind
#
# Each makes .venv when it is absent and installs again when pyproject.toml is newer.

PYTHON ?= python3
WORKERS ?= 2

bin := .venv/bin
comma := ,

# uv installs the 6 GB of torch and CUDA in about a quarter of pip's time (65 s against 240 s, two
# busy cores, nothing cached). It reads none of pip's settings, so where it fails (an index that
# only pip knows) pip does it.
install_with = $(bin)/uv pip install --quiet --python $(bin)/python --editable '.[$(1)]' \
	|| $(bin)/pip install --quiet --editable '.[$(1)]'

# Without bytecode every process would compile torch's 2,000 files anew.
unexport PYTHONDONTWRITEBYTECODE
# A fresh machine has neither, and both let foreign modules in.
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: demo check study install format clean
.DELETE_ON_ERROR:

demo: .venv/demo.stamp
	rm -rf demo-run
	$(bin)/polarprune demo --out demo-run

check: .venv/check.stamp
	$(bin)/ruff format --check
	$(bin)/ruff check
	$(bin)/mypy
	$(bin)/lint-imports
	OMP_NUM_THREADS=1 $(bin)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

study: .venv/check.stamp
	OMP_NUM_THREADS=1 $(bin)/pytest -n $(WORKERS) -m study

install: .venv/check.stamp

format: .venv/check.stamp
	$(bin)/ruff format
	$(bin)/ruff check --fix

clean:
	rm -rf .venv demo-run dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.venv/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: polarprune needs \
	Python 3.11 or newer, $(PYTHON) is %d.%d; name another: make PYTHON=python3.11 ..." \
	% sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	-$(bin)/pip install --quiet uv
	touch $@

.venv/demo.stamp: .venv/made.stamp pyproject.toml
	$(call install_with,cpu$(comma)rtx$(comma)report)
	touch $@

.venv/check.stamp: .venv/made.stamp pyproject.toml
	$(call install_with,dev)
	touch $@
	touch .venv/demo.stamp # dev holds all that the demo needs
