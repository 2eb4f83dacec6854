# CAIR: `make run` serves, `make test` tests, `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help run test soak check demo todos-api clean

PYTHON ?= python3
BIN := .venv/bin
CI ?=

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/runs: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "CAIR needs Python 3.11 or newer; set PYTHON=python3.12 or the like")'
	@test -d .venv || $(PYTHON) -m venv .venv
	@echo "Installing what CAIR needs (once) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/tests: .venv/runs requirements-dev.txt
	@echo "Installing what the tests need (once) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.env:
	@umask 077; printf '# Read by manage.py and make. See docs/configuration.md.\nCAIR_ENV=development\n' > $@

run: .venv/runs .env ## Serve CAIR on http://localhost:8788 (PORT=… for another)
	@exec $(BIN)/python manage.py serve

demo: .venv/runs .env ## Walk the whole job in the terminal (URL=… of a running server, HEADLESS=1 without a browser)
	@exec $(BIN)/python manage.py demo

todos-api: .venv/runs ## Serve the sample API as a process of its own on port 8789
	@exec $(BIN)/python -m todos

test: .venv/tests ## Run all tests; says what it skips, and why
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: .venv/tests ## Prove refresh on PostgreSQL: COUNT=10000 interleavings at PROCESSES=4 processes (SEED=… to choose them)
	@$(BIN)/python -m tests.soak

check: .venv/tests ## Style, types, import contracts, migrations, and the settings of a production server
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@CAIR_ENV=development $(BIN)/python manage.py makemigrations --check --dry-run
	@$(BIN)/python tests/check_deploy.py

clean: ## Forget the environment; keeps .env and the database
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache staticfiles
