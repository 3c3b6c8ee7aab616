# make demo: the whole pipeline on real data.  make test: every check.  Both set themselves up the first time.
SHELL := /bin/sh
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
DEVICE_VENV := .venv-device
WORKERS := -n 2 --no-loadscope-reorder
PYTHONS := $(or $(EDGEPIPE_PYTHON),3.13 3.12 3.11)

.PHONY: demo test quick coverage lint wheel bench families lock clean help

help:
	@echo "make demo   run pipelines/digits.yaml: train, prune, quantize, convert, validate"
	@echo "make test   lint and all tests"
	@echo "make quick  only the tests that take seconds"
	@echo "make coverage  line and branch coverage of the tests that take seconds"
	@echo "make lint   ruff, mypy, import contracts, import cycles"
	@echo "make wheel  build the wheel, install it outside the repository, run the demo there"
	@echo "make bench  run the benchmarks, which print ratios; not tests"
	@echo "make families  convert 14 model families to int8 and write docs/families.md (half an hour)"
	@echo "make lock   update requirements.lock (needs uv)"

demo: $(VENV)/.installed
	$(BIN)/edgepipe run pipelines/digits.yaml

test: lint $(DEVICE_VENV)/.installed
	$(BIN)/python -m pytest $(WORKERS)

quick: $(VENV)/.installed
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

# Tracing makes tests up to three times as slow, so it is not part of `make test`.
coverage: $(VENV)/.installed
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" --cov --cov-report=
	@$(BIN)/coverage report --sort=cover

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_imports.py

wheel: $(VENV)/.installed
	@sh tools/check_wheel.sh $(BIN)/python

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/convert.py

families: $(VENV)/.installed
	$(BIN)/python benchmarks/families.py

$(VENV)/.installed: requirements.lock pyproject.toml
	@sh tools/make-venv.sh $(VENV) "$(PYTHONS)" requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# tflite-runtime needs numpy < 2 and ends at Python 3.11, so it lives apart; without 3.11 its test skips and says so.
$(DEVICE_VENV)/.installed: requirements-device.txt
	@sh tools/make-venv.sh $(DEVICE_VENV) "3.11" requirements-device.txt optional
	@mkdir -p $(DEVICE_VENV) && touch $@

lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --group dev --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header --output-file requirements.lock

clean:
	rm -rf $(VENV) $(DEVICE_VENV) build dist runs
