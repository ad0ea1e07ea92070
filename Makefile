# Thin on purpose: every target is one `python -m …` line that also works where there is no make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEED ?=

# Without network and tokens by default; one thread per process, because the stages run two processes side by side.
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo rehearse test test-slow bench lint clean

demo: $(READY)
	$(BIN)/python -m cards release cards/configs/demo.yaml $(if $(SEED),--seed $(SEED))

rehearse: $(READY)
	$(BIN)/python -m tests.rehearsal

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow"

bench: $(READY)
	$(BIN)/python -m benchmarks

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

# The stamp is newer than what it was made from, or everything is installed again; a second run installs nothing.
$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,dev]"
	touch $@

clean:
	rm -rf runs mmaip-v .mmaip-v-work .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
