# Each target makes .venv when it is missing or when the package lists have changed.
HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?= python3
PYTEST ?= -q
TASK ?= denoise
CONFIG ?= training/configs/$(TASK).toml
DATA ?= $(MEDRESTORE_SHARED)/data
OUT ?= runs/$(TASK)
BIN := .venv/bin
INSTALL = $(PYTHON) -m venv .venv && $(BIN)/pip install --quiet --constraint constraints.txt --editable

.PHONY: serve test lint bench train

serve: .venv/serve.stamp  ## restore images over HTTP with the bundled models, on the CPU
	$(BIN)/medrestore serve --host $(HOST) --port $(PORT)

test: .venv/dev.stamp  ## every test; e.g. make test PYTEST="-k dicom"
	$(BIN)/python -m pytest $(PYTEST)

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev.stamp  ## seconds per slice for each backend and precision, beside DnCNN
	$(BIN)/python -m benchmarks.speed $(BENCH)

train: .venv/dev.stamp  ## e.g. make train TASK=superresolve CONFIG=... DATA=... OUT=...
	$(BIN)/medrestore train $(TASK) --config $(CONFIG) --data $(DATA) --out $(OUT) $(TRAIN)

.venv/serve.stamp: pyproject.toml constraints.txt
	$(INSTALL) ".[cpu]"
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt
	$(INSTALL) ".[cpu,torch,train,dev]"
	touch .venv/serve.stamp $@
