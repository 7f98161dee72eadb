# Each target makes .venv when it is missing or when the package lists have changed.
HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?= python3
PYTEST ?= -q
CONFIG ?= denoise
DATA ?= $(MEDRESTORE_SHARED)/data
OUT ?= runs/$(CONFIG)
BIN := .venv/bin
INSTALL = $(PYTHON) -m venv .venv && $(BIN)/pip install --quiet --constraint constraints.txt --editable

.PHONY: serve test lint bench faults train

# Without API keys where nobody but this machine can call and no configuration says another thing.
ifeq ($(filter-out 127.0.0.1 localhost ::1,$(HOST))$(shell grep -s '^ *access' "$${MEDRESTORE_CONFIG:-medrestore.toml}"),)
serve: export MEDRESTORE_ACCESS ?= open
endif

serve: .venv/serve.stamp  ## restore images over HTTP with the bundled models, on the CPU
	$(BIN)/medrestore serve --host $(HOST) --port $(PORT)

test: .venv/dev.stamp  ## every test; e.g. make test PYTEST="-k dicom"
	$(BIN)/python -m pytest $(PYTEST)

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/bench.stamp  ## codecs; each backend and precision beside DnCNN; super-resolution beside bicubic; the server beside its bare loop and LitServe
	$(BIN)/python -m tests.benchmarks.codec
	$(BIN)/python -m tests.benchmarks.speed $(BENCH)
	$(BIN)/python -m tests.benchmarks.superresolve $(or $(SUPERRESOLVE),--scales 2 --rounds 1 --memory 1024)
	$(BIN)/python -m tests.benchmarks.serving $(SERVING)

faults: .venv/dev.stamp  ## seams of tiles; then hang-ups, overload, kills, swaps, drain, soak, determinism, large images
	$(BIN)/python -m tests.benchmarks.tiling
	$(BIN)/python -m tests.benchmarks.faults $(or $(FAULTS),all)

train: .venv/dev.stamp  ## e.g. make train CONFIG=denoise DATA=../images TRAIN="--threads 2"
	$(BIN)/medrestore train denoise --config $(CONFIG) --data $(DATA) --out $(OUT) $(TRAIN)

.venv/serve.stamp: pyproject.toml constraints.txt
	$(INSTALL) ".[cpu]"
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt
	$(INSTALL) ".[cpu,torch,train,dev]"
	touch .venv/serve.stamp $@

.venv/bench.stamp: pyproject.toml constraints.txt
	$(INSTALL) ".[cpu,torch,train,dev,bench]"
	touch .venv/serve.stamp .venv/dev.stamp $@
