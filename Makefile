# A fresh machine needs Python 3.11 to 3.14 and make; everything else goes into .venv/.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.PHONY: help setup train test test-fast chaos lint bench gpu-check gpu-wheels test-newest docs sbom wheel clean lock docker-build docker-train docker-test browser up down compose

# A missing dependency must fail, not be found in the user's site directory or another environment.
unexport PYTHONPATH PYTHONSAFEPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
export PYTHONNOUSERSITE := 1

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
    "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && { echo "$$p"; break; }; done)
UV_VERSION := 0.13.9
BIN := .venv/bin
READY := .venv/.ready

CONFIG ?= configs/digits.yaml
# Three keep two cores busy, since many tests wait.
WORKERS ?= 3
ARGS ?=
# How this run was started, for its line on how to go on; a CONFIG with a space is quoted.
QUOTE = $(if $(word 2,$(CONFIG)),')
VARIABLES = $(if $(filter-out file,$(origin CONFIG)), CONFIG=$(QUOTE)$(CONFIG)$(QUOTE))$(if $(NPROC), NPROC=$(NPROC))
SCRIPTS = $(wildcard launch/*.sh launch/*.sbatch docker/*.sh benchmarks/gpu/*.sh) .ci/run

DOCKER ?= docker
COMPOSE ?= $(DOCKER) compose
IMAGE ?= gfgw-prod
BUILD_FLAGS ?=
RUN_FLAGS ?=
# Each clone has its own containers and volumes, named after its directory.
COMPOSE_PROJECT_NAME ?= $(or $(shell basename "$(CURDIR)" | tr A-Z a-z | tr -cd 'a-z0-9_-' | sed 's/^[_-]*//'),gfgw)
STACK = $(COMPOSE) --project-name "$(COMPOSE_PROJECT_NAME)" -f docker/compose.yaml

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create the environment .venv/ from requirements.lock

$(READY): requirements.lock pyproject.toml Makefile
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || \
	    { echo "setup: Python 3.11 to 3.14 is needed and was not found; name one with PYTHON=/path/to/python" >&2; exit 2; }
	@$(BIN)/python -c '' 2>/dev/null || "$(PYTHON)" -m venv --clear .venv
	@# The sum of the wheels for Linux on x86-64: `uv pip compile requirements.lock --format pylock.toml` lists their sizes.
	@echo "setup: $$(grep -c '^[a-z].*==' requirements.lock) packages for .venv/: 4.4 GB to download unless uv has them cached, 8 GB on disk" >&2
	@[ "$$($(BIN)/uv --version 2>/dev/null | cut -d ' ' -f 2)" = "$(UV_VERSION)" ] || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@# Compile bytecode now: where it cannot be cached, each start would compile torch, and take twice as long.
	@quiet=--quiet; [ ! -t 2 ] || quiet=; started=$$SECONDS; \
	$(BIN)/uv pip sync $$quiet --python $(BIN)/python --compile-bytecode --require-hashes requirements.lock; \
	echo "setup: installed in $$((SECONDS - started)) s" >&2
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

train: $(READY) ## train CONFIG (configs/digits.yaml) on this machine; NPROC=ranks, ARGS="--train.batch-size 256"
	@PYTHON="$(CURDIR)/$(BIN)/python" GFGW_PROGRAM="make $@$(VARIABLES)" exec launch/elastic.sh --config "$(CONFIG)" $(ARGS)

test: $(READY) ## run all tests, WORKERS (3) at a time; ARGS goes to pytest
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) $(ARGS)

test-fast: $(READY) ## run the quick unit tests, in about a minute; ARGS goes to pytest
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) -m "not slow" tests/unit $(ARGS)

chaos: $(READY) ## inject 40 faults into a digits run and compare its weights; ARGS="--seed 1 --faults 20"
	@$(BIN)/python -m tests.chaos $(ARGS)

lint: $(READY) ## check format, lint, types, imports, shell scripts, the Dockerfile and, with promtool, the alerts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict gfgw_prod
	@$(BIN)/lint-imports --no-logo >/dev/null || $(BIN)/lint-imports --no-logo
	@$(BIN)/shellcheck $(SCRIPTS)
	@$(BIN)/hadolint Dockerfile
	@! command -v promtool >/dev/null || promtool check config docker/prometheus/prometheus.yml >/dev/null

bench: $(READY) ## run the benchmarks; ARGS goes to them
	@$(BIN)/python -m benchmarks $(ARGS)

gpu-check: $(READY) ## check and measure this machine's GPU in 8 minutes; on a CPU it tests itself; ARGS="--out FILE PART ..."
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

# For a machine with Python 3.12 and torch, where nothing can be installed: benchmarks/gpu/carried.sh dist/wheels
CARRIED = pydantic pydantic-core pydantic-settings annotated-types typing-inspection python-dotenv blake3 torchdata lpips
gpu-wheels: wheel ## fetch the wheels that `benchmarks/gpu/carried.sh dist/wheels` takes to such a machine
	@mkdir -p dist/wheels
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.12 \
	    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest dist/wheels \
	    $$(grep -E "^($$(echo $(CARRIED) | tr ' ' '|'))==" requirements.lock | cut -d ' ' -f 1)
	@cp dist/*.whl dist/wheels/

NEWEST := build/newest
test-newest: $(READY) ## run the quick tests and two ranks on the newest release of every package, in an environment of its own
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(NEWEST)
	@$(BIN)/uv pip install --quiet --upgrade --python $(NEWEST)/bin/python --group dev --editable .
	@$(NEWEST)/bin/python -m pytest --numprocesses $(WORKERS) -m "not slow" tests/unit tests/gpu $(ARGS)
	@run=$$(mktemp -d); PYTHON="$(CURDIR)/$(NEWEST)/bin/python" NPROC=2 launch/elastic.sh --config configs/digits.yaml \
	    --run.dir "$$run" --run.device cpu --train.total-kimg 2 --evaluation.every-kimg 0; rm -rf "$$run"

docs: $(READY) ## generate the pages of docs/ that come from code
	@$(BIN)/python -m docs.metrics_page >docs/metrics.md
	@$(BIN)/python -m docs.manual settings >docs/settings.md
	@$(BIN)/python -m docs.manual exit-codes >docs/exit-codes.md
	@$(BIN)/python -m tests.licences >docs/licences.md

sbom: $(READY) ## write the bill of materials of the image's packages to dist/sbom.json
	@mkdir -p dist
	@$(BIN)/cyclonedx-py requirements docker/runtime.lock --pyproject pyproject.toml --output-reproducible \
	    --of JSON -o dist/sbom.json

wheel: $(READY) ## build the wheel, with presets and launch scripts, into dist/
	@$(BIN)/python -m hatchling build -t wheel

COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header
lock: $(READY) ## resolve the dependencies of pyproject.toml into requirements.lock again
	@$(COMPILE) --group dev pyproject.toml -o requirements.lock
	@$(COMPILE) --constraints requirements.lock pyproject.toml -o docker/runtime.lock
	@$(COMPILE) --constraints requirements.lock --group build -o docker/build.lock

clean: ## remove .venv/, caches and build products; never runs/ or data/
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist *.egg-info
	@find . \( -path ./runs -o -path ./data -o -path ./.git \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

docker-build: ## build the image IMAGE (gfgw-prod); BUILD_FLAGS goes to docker build
	@$(DOCKER) build --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || true)" $(BUILD_FLAGS) --tag $(IMAGE) .

docker-test: $(READY) ## build the image on a small local base with buildah, and test it with podman (root on Debian)
	@$(BIN)/python -m pytest tests/image $(ARGS)

browser: $(READY) ## check TensorBoard in a headless Chromium, after a run was killed and resumed
	@$(BIN)/python -m pytest tests/browser $(ARGS)

# Files in the mounted runs/ should belong to the caller, so the container runs as the caller's uid. For root it runs as
# the image's own user, 10001, who is given runs/ and data/: the trainer does not need root. Downloads (the data set,
# weights of frozen networks) stay in data/.
docker-train: ## train CONFIG in the image, on all GPUs if there are any; RUN_FLAGS goes to docker run
	@mkdir -p runs data
	@owner="$$(id -u):$$(id -g)"; \
	if [ "$$(id -u)" = 0 ]; then owner=10001:10001; chown -R "$$owner" runs data; fi; \
	gpus=(); if nvidia-smi -L >/dev/null 2>&1; then gpus=(--gpus all --env CUDA_VISIBLE_DEVICES); fi; \
	exec $(DOCKER) run --rm --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges \
	    --user "$$owner" --shm-size 2g --stop-timeout 120 "$${gpus[@]}" \
	    $(if $(NPROC),--env NPROC=$(NPROC)) --env GFGW_PROGRAM="make $@$(VARIABLES)" \
	    --volume "$(CURDIR)/runs:/workspace/runs" --volume "$(CURDIR)/data:/workspace/data" \
	    --volume "$(CURDIR)/configs:/workspace/configs:ro" \
	    $(RUN_FLAGS) $(IMAGE) --config "$(CONFIG)" $(ARGS)

ifneq ($(and $(filter up,$(MAKECMDGOALS)),$(ARGS)),)
$(error make up passes no ARGS on; write the settings into a file of configs/, and name it: CONFIG=configs/mine.yaml)
endif

# A run and its monitoring in one command. `make down` saves the state.
up: docker-build ## start a run of CONFIG in the image, with Prometheus, Alertmanager, Grafana and TensorBoard
	@files=(); if nvidia-smi -L >/dev/null 2>&1; then files=(-f docker/compose.gpu.yaml); fi; \
	GFGW_IMAGE=$(IMAGE) GFGW_CONFIG="$(CONFIG)" $(STACK) "$${files[@]}" up --detach; \
	for each in grafana:3000 tensorboard:6006 prometheus:9090 alertmanager:9093 trainer:9100; do \
	    address=$$($(STACK) port "$${each%:*}" "$${each#*:}" 2>/dev/null) || continue; \
	    printf '%-13s http://%s\n' "$${each%:*}" "$$address"; \
	done

down: ## stop what `make up` started, and keep its volumes
	@GRAFANA_ADMIN_PASSWORD=none exec $(STACK) down

compose: ## run another docker compose command on this stack; ARGS="logs trainer"
	@GFGW_IMAGE=$(IMAGE) exec $(STACK) $(ARGS)
