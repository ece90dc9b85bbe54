# `make run` turns text into pruned language models; `make test` is all that CI runs. Python ≥ 3.11, git and uv or pip needed.
export PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DO_NOT_TRACK = true
export PREFECT_SERVER_ANALYTICS_ENABLED = false
# A run and the tests are hundreds of processes: what one has compiled is there for the others, whatever the shell says.
export PYTHONDONTWRITEBYTECODE =
MLFLOW_PORT ?= 5000
PREFECT_PORT ?= 4200
BASE ?= main
RUNS = http://127.0.0.1:$(MLFLOW_PORT)/\#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=variants
# What stages write, each below its own name, and commands by default; `make clean` leaves the rest of data/ alone.
MADE = $(shell sed -n 's|^  \([a-z_]*\):$$|data/\1|p' dvc.yaml) data/choice data/experiment data/export data/front
# A server that finds its port taken says so among fifty other lines, or begins again for ever.
FREE = python -c 'import socket, sys; taken = socket.socket().connect_ex(("127.0.0.1", $($(1)))) == 0; \
	sys.exit(taken and "Expected a free port, got $($(1)), on which a program listens; make $@ $(1)=NUMBER takes another.")'
# Material for MkDocs advertises on stderr unless told not to.
BUILD_DOCS = NO_MKDOCS_2_WARNING=true python -m mkdocs build --strict

.DEFAULT_GOAL := help
.PHONY: help run test check docs docs-serve mlflow prefect report experiments review clean install lock
.NOTPARALLEL:  # an environment is installed into by one at a time

help:            ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

run: .venv/.run  ## Install, run what changed, and show the results
	@python -m tasks check
	@python -m flows.repro
	@python -m tasks track
	@python -m tasks report

test: .venv/.test check      ## Check and test everything
	@pytest

check: .venv/.check  ## Format, lint, types, direction of imports, documentation
	@ruff format --check .
	@ruff check .
	@mypy
	@lint-imports
	@$(BUILD_DOCS) --quiet

docs: .venv/.check  ## Build the documentation into site/
	@$(BUILD_DOCS)

docs-serve: .venv/.check  ## Show the documentation while it is written
	@python -m mkdocs serve

report: .venv/.run  ## Show the results again
	@python -m tasks report

experiments: .venv/.run  ## What DVC's experiments reached beside each other, and the front of all
	@python -m tasks experiments
	@python -m tasks front

review: .venv/.run  ## Pull, reproduce, and say as Markdown what became of the metrics of BASE (main)
	@if dvc config core.remote > /dev/null 2>&1; then dvc pull --allow-missing dvc.yaml && \
		dvc fetch --all-branches data/compare/summary.json; fi >&2
	@dvc repro >&2
	@dvc metrics diff --md $(BASE)
	@python -m tasks report --markdown

mlflow: .venv/.run  ## Compare runs in the browser
	@$(call FREE,MLFLOW_PORT)
	@echo "MLflow, all variants ranked, then their curves (Ctrl+C ends it):"
	@echo "$(RUNS)"
	@echo "$(RUNS)&compareRunsMode=CHART"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --workers 1 --port $(MLFLOW_PORT) \
		--backend-store-uri "sqlite:///$(CURDIR)/mlflow.db"

prefect: .venv/.run  ## Watch and schedule the pipeline in the browser
	@$(call FREE,PREFECT_PORT)
	@echo "Prefect: http://127.0.0.1:$(PREFECT_PORT)  (Ctrl+C ends it)"
	@echo "In another terminal: PREFECT_API_URL=http://127.0.0.1:$(PREFECT_PORT)/api .venv/bin/python -m flows.pipeline"
	@PREFECT_UI_API_URL=http://127.0.0.1:$(PREFECT_PORT)/api prefect server start --port $(PREFECT_PORT)

clean:           ## Remove results and caches; the installation stays
	rm -rf $(MADE) data/.partial .dvc/cache .dvc/tmp mlflow.db mlartifacts
	rm -rf site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

install: .venv/.run  ## Install an extra of pyproject.toml too: make install EXTRA=export
	@./install.sh $(EXTRA)

lock:            ## Bring uv.lock and constraints.txt up to pyproject.toml (needs uv)
	uv lock
	uv export --frozen --extra dev --extra examples --extra benchmarks --quiet --no-hashes --no-emit-project \
		--no-annotate --no-header | sed 's/ *;.*//' | grep -vE '^(nvidia|cuda|triton)' > constraints.txt

# Each stamp says that what its target needs is installed, and with it what smaller ones need.
.venv/.run: pyproject.toml constraints.txt uv.lock
	@./install.sh pipeline
	@touch .venv/.run

.venv/.check: pyproject.toml constraints.txt uv.lock
	@./install.sh pipeline check
	@touch .venv/.run .venv/.check

.venv/.test: pyproject.toml constraints.txt uv.lock
	@./install.sh dev
	@touch .venv/.run .venv/.check .venv/.test
