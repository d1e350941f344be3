# Two commands do all: `make demo` and `make test`. Each makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_STEPS ?= 2500
DEMO_NAME := demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: setup demo check test test-slow test-all docs image clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing (a minute or more; torch is large) ..."
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/infogan train --preset mnist_robust --steps $(DEMO_STEPS) --checkpoint-every 500 --storage runs --name $(DEMO_NAME)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.project.public_names

# Unit tests run side by side, one core each. Tests with a server, a browser or Ray share it and run one by one.
test: setup
	$(BIN)/pytest -n logical -m 'not slow and not ray and not s3 and not browser'
	$(BIN)/pytest -m '(s3 or browser) and not ray and not slow'
	$(BIN)/pytest -m 'ray and not slow'

test-slow: setup
	$(BIN)/pytest -m slow

test-all: test test-slow

# Builds site/ from docs/. A broken link fails.
docs: setup
	$(BIN)/zensical build --strict --clean

# The script sees make's variables: make image VARIANT=gpu TAG=... BASE_IMAGE=... TORCH_INDEX_URL=... BUILD_ARGS='...'
image:
	@cluster/build-image.sh $(BUILD_ARGS)

clean:
	rm -rf $(VENV) build site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache
