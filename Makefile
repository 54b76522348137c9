# `make demo` and `make test` do all set-up themselves, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
SCALE ?= small

.PHONY: help demo test lint types generated docs docs-tables model-pictures board-picture drills chromium gpu-test clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.demo: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hybridzoo needs Python 3.11 or newer, found " + sys.version.split()[0] + "; run make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[train,eval]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(VENV)/.demo  ## build, evaluate and rank the zoo's own checkpoints offline; prints the page to open
	HF_HUB_OFFLINE=1 $(BIN)/hybridzoo demo

# The page of the leaderboard is tested in Chromium; without it its tests are skipped, and fail in CI.
chromium:
	@if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	  else echo "Chromium is missing: the page's tests are skipped (Debian: apt-get install chromium)"; fi; fi

test: $(VENV)/.dev chromium  ## the whole test suite, offline, on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not gpu" $(ARGS)

gpu-test:  ## tests that need a CUDA device, with the Python that has torch for it
	$(PYTHON) -m pytest -m gpu $(ARGS)

lint: $(VENV)/.dev  ## ruff: style and formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev  ## pyright over the package
	rm -rf build/types && mkdir -p build/types && cp -r hybridzoo build/types/ && cp -r eval recipes checkpoints build/types/hybridzoo/
	$(BIN)/pyright --pythonpath $(BIN)/python

generated: $(VENV)/.dev  ## fail when a generated table or the leaderboard is stale, or a score not reproducible
	$(BIN)/python docs/generate.py --check
	$(BIN)/hybridzoo leaderboard check

docs: $(VENV)/.dev  ## the documentation as a site, with the board: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

drills: $(VENV)/.dev  ## hard use: hub faults, kills, a full disk, fuzzed configs, broken checkpoints; SCALE=small|full
	OMP_NUM_THREADS=1 $(BIN)/python tests/drills/run.py --scale $(SCALE)

model-pictures: $(VENV)/.dev  ## docs/models/pictures, the pictures of the models' pages
	$(BIN)/python docs/model_pictures.py

board-picture: $(VENV)/.dev chromium  ## docs/leaderboard/board.png, the picture in README.md
	$(BIN)/python docs/board_picture.py

docs-tables: $(VENV)/.dev  ## rewrite the generated tables and the leaderboard
	$(BIN)/hybridzoo leaderboard build
	$(BIN)/python docs/generate.py

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
