# The commands that people and CI use. Every target sets up .venv first, unless it is up to date.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PORT ?= 5000
TESTS ?=
MODEL ?=
OTHER_PORT = $(if $(filter command%,$(origin PORT)),--port $(PORT))
ACTIVATE := source .venv/bin/activate
# What the environment is made from, and where: a change of any of them makes it out of date.
WANTED = $$(cat requirements.lock pyproject.toml Makefile | sha256sum | cut -c1-64)

# Appended to .venv/bin/activate: the plain tools find the project's runs, and nothing is reported to anyone.
define ACTIVATE_HOOK

if [ "$${MLFLOW_TRACKING_URI:-}" = "$${_TWINRUN_DEFAULT_URI:-}" ]; then
    MLFLOW_TRACKING_URI="sqlite:///$$(realpath "$$VIRTUAL_ENV/..")/mlruns/mlflow.db"
    case "$$MLFLOW_TRACKING_URI" in # which MLflow would quote, and create a folder elsewhere
        *[%?]*) MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db ;;
    esac
    _TWINRUN_DEFAULT_URI="$$MLFLOW_TRACKING_URI"
    MLFLOW_BACKEND_STORE_URI="$$MLFLOW_TRACKING_URI" # what `mlflow ui` reads
    export MLFLOW_TRACKING_URI MLFLOW_BACKEND_STORE_URI _TWINRUN_DEFAULT_URI
fi
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true DVC_NO_ANALYTICS=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
endef
export ACTIVATE_HOOK

.PHONY: repro test test-engines coverage check format ui app phone axe wheel serve docs chaos bench bench-cifar bench-data bench-serve fuzz lock setup help

repro: setup  ## run the stages that are out of date: ingest, validate, train, evaluate, register
	@$(ACTIVATE) && code=0 && { dvc repro || code=$$?; } && \
	  { twinrun sync || exit $$((code ? code : $$?)); } && exit $$code  # MLflow gets refused data too

test: setup  ## run the tests (TWINRUN_TEST_DATA=FOLDER adds those on real image sets)
	@$(ACTIVATE) && pytest

ENGINES := .cache/engines
test-engines: setup  ## run the tests with real Ray, Spark, PostgreSQL and S3, fetched beside .venv (Debian has openjdk-17-jre-headless, postgresql)
	@wanted=$$(cat requirements.lock tests/engines/requirements.txt | sha256sum); [[ "$$(cat $(ENGINES)/.made-from 2> /dev/null)" == "$$wanted" ]] || { \
	  .venv/bin/python -m venv --clear --without-pip $(ENGINES); \
	  packages=$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  echo "import site; site.addsitedir('$$packages')" > "$$($(ENGINES)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"; \
	  $(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/engines/requirements.txt; \
	  echo "$$wanted" > $(ENGINES)/.made-from; }
	@$(ACTIVATE) && $(ENGINES)/bin/python -m pytest --numprocesses=0 --durations=5 --timeout=1800 tests/engines

coverage: setup  ## measure which lines and branches the tests run (TESTS=tests/core for some of them)
	@$(ACTIVATE) && coverage erase && { coverage run -m pytest $(TESTS) || code=$$?; } && \
	  coverage combine --quiet && coverage report $(if $(TESTS),--fail-under=0) && exit $${code:-0}

check: setup  ## check format, lint, types and the direction of imports
	@$(ACTIVATE) && ruff format --check . && ruff check . && mypy && lint-imports

format: setup  ## rewrite the code in the project's format
	@$(ACTIVATE) && ruff format . && ruff check --fix .

ui: setup  ## browse runs, pictures and the registry in MLflow (PORT=5001 for another port than 5000)
	@$(ACTIVATE) && twinrun ui --port $(PORT)

ORT := src/twinrun/serving/page/ort
phone:  ## fetch what lets the page look at photos in the browser: three files of onnxruntime-web, by npm, checked by their sha256
	@mkdir -p $(ORT) && cd $(ORT) && { sha256sum --status -c ../ort.sha256 2> /dev/null || { \
	  folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT; \
	  command -v npm > /dev/null || { echo "npm is not here" >&2; exit 1; }; \
	  npm pack --loglevel=error --pack-destination "$$folder" onnxruntime-web@1.30.0 > /dev/null; \
	  tar -xzf "$$folder"/*.tgz -C "$$folder" $$(sed 's|.*  |package/dist/|' ../ort.sha256); \
	  (cd "$$folder/package/dist" && sha256sum --quiet -c "$(CURDIR)/src/twinrun/serving/page/ort.sha256"); \
	  cp "$$folder"/package/dist/ort* .; }; }

axe:  ## fetch axe-core, which tests the page for accessibility, by npm, checked by its sha256
	@cd tests/serving && { sha256sum --status -c axe.sha256 2> /dev/null || { \
	  folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT; \
	  npm pack --loglevel=error --pack-destination "$$folder" axe-core@4.14.1 > /dev/null; \
	  tar -xzf "$$folder"/*.tgz -C "$$folder" package/axe.min.js; \
	  (cd "$$folder/package" && sha256sum --quiet -c "$(CURDIR)/tests/serving/axe.sha256"); \
	  cp "$$folder/package/axe.min.js" .; }; }

wheel: setup  ## build the wheel into dist/, with these files in it
	@if command -v npm > /dev/null; then $(MAKE) --no-print-directory phone; \
	  else echo "npm is not here: a server from this wheel looks at photos itself, and not in the browser"; fi
	@.venv/bin/uv build --wheel --no-build-isolation --python .venv/bin/python

app: setup  ## open the page that sorts waste, at http://127.0.0.1:5001 (PORT=5002 for another port); it needs no training and no network
	@said=$$(npm_config_fetch_retries=0 $(MAKE) phone 2>&1) || { sed -n 1,5p <<< "$$said"; \
	  echo "Photos are looked at by this machine's server, and not in the browser, for the reason above"; }
	@$(ACTIVATE) && twinrun app $(OTHER_PORT)

serve: setup  ## serve the champion at http://127.0.0.1:5001: a page and an API (MODEL=name for another model, PORT=5002 for another port)
	@$(ACTIVATE) && twinrun serve $(OTHER_PORT) $(if $(MODEL),--model $(MODEL))

docs: setup  ## build the documentation into site/; a dead link is an error
	@$(ACTIVATE) && zensical build --clean --strict

chaos: setup  ## inject faults into trainings, here and in a plain stack, and print the results (more than an hour)
	@$(ACTIVATE) && python -m benchmarks.chaos --json chaos.json $(CHAOS)

bench: setup  ## compare training, and what happens around it, with what others do (20 minutes; an hour where the processor has no bfloat16)
	@$(ACTIVATE) && python -m benchmarks.shards_speed --json bench.json $(BENCH)
	@$(ACTIVATE) && python -m benchmarks.everyday --json bench-everyday.json

bench-cifar: setup  ## compare the preset cifar10 with airbench94, both to the end: BENCH="--data FOLDER" (about an hour)
	@$(ACTIVATE) && pip install --quiet --no-deps --target .cache/airbench airbench==0.1.8
	@$(ACTIVATE) && PYTHONPATH=.cache/airbench python -m benchmarks.cifar --whole --json bench-cifar.json $(BENCH)

bench-data: setup  ## plant faults in real image sets, and count what the data checks and other tools find
	@$(ACTIVATE) && python -m benchmarks.data --json bench-data.json $(BENCH)

bench-serve: setup  ## compare the server with MLflow's, and overload it (about 5 minutes)
	@$(ACTIVATE) && python -m benchmarks.serving --json bench-serve.json $(BENCH)

fuzz: setup  ## send ten thousand broken requests to the server (TWINRUN_TEST_DATA=FOLDER adds images that break decoders)
	@$(ACTIVATE) && python -m benchmarks.fuzz $(FUZZ)

lock: setup  ## update requirements.lock: every package, version and hash
	@.venv/bin/uv pip compile --quiet --universal --generate-hashes --no-header --upgrade --python-version 3.11 \
	  --group dev pyproject.toml --output-file requirements.lock

setup:  # uv comes from the lock too; a moved project gets its own path back without the package index
	@[[ "$$(cat .venv/.made-from 2>/dev/null)" == "$(WANTED)" ]] || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Twinrun needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Try: make PYTHON=python3.12 ...")'; \
	  echo "Setting up .venv (about a minute, once)"; rm -f .venv/.made-from; \
	  .venv/bin/uv --version &> /dev/null || { \
	    $(PYTHON) -m venv --clear .venv; \
	    awk '/^uv==/ {on = 1} on {print} on && !/\\$$/ {exit}' requirements.lock > .venv/uv.lock; \
	    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock; }; \
	  .venv/bin/uv venv --quiet --allow-existing --relocatable --python .venv/bin/python .venv; \
	  .venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock; \
	  .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .; \
	  packages=$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  echo ../../../../src > "$$packages/_editable_impl_twinrun.pth"; \
	  echo 'import twinrun.before_dvc; twinrun.before_dvc.watch()' > "$$packages/_twinrun.pth"; \
	  echo "$$ACTIVATE_HOOK" >> .venv/bin/activate; \
	  echo "$(WANTED)" > .venv/.made-from; }

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
