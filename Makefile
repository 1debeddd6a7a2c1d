# Every target makes what it needs first; each works twice in a row. `make help` lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# make conformance: the directories of cases to run, and the server to run them against (unset: one of its own).
SUITES_DIR ?= ../shared/conformance/suites
SUITES     ?= $(SUITES_DIR)/level-0-core $(SUITES_DIR)/level-1-reliable $(SUITES_DIR)/level-2-scheduled \
              $(SUITES_DIR)/level-3-workflows $(SUITES_DIR)/level-4-advanced
OJS_URL    ?=
# make test: how many processes; one more than there are cores, because many tests wait.
TESTERS    ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
# make fuzz: how many requests, and what they are made from (make chaos too).
COUNT      ?= 100000
SEED       ?=
# make chaos: how many runs, and how long faults go on in each.
SEEDS      ?= 20
SECONDS    ?= 180
# make docker-up, docker-down: what to start; docker/compose.cluster.yaml is three nodes on three NATS servers.
COMPOSE    ?= docker/compose.yaml
# Further options of what a target runs: pytest, the benchmark, the conformance runner (--extended for extension suites).
ARGS       ?=

INSTALLED := $(VENV)/.installed
BUILT     := $(VENV)/.built
SOURCES   := setup.py $(wildcard ojs_fast/*.pyx ojs_fast/*.pxi)
LEVELS    := conformance-level-0 conformance-level-1 conformance-level-2 conformance-level-3 conformance-level-4

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run build test lint fmt bench bench-guard curves load fuzz chaos conformance docker-up docker-down $(LEVELS) clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z$$()A-Z-]+:.*## / {sub(/\$$\(LEVELS\)/, "conformance-level-N", $$1); printf "  %-20s %s\n", $$1, $$2}' Makefile

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(BUILT)

# The first build is pip's; after that only a changed source is compiled again.
$(BUILT): $(SOURCES) | $(INSTALLED)
	@test -f $@ && test -z "$$(find $(SOURCES) -newer $@)" || { \
	    echo 'compiling ojs_fast/_core.pyx' && $(BIN)/python setup.py --quiet build_ext --inplace && touch $@; }

build: $(INSTALLED) $(BUILT) ## make .venv and compile the extension

run: build ## serve on OJS_PORT (8080) until Ctrl-C
	@exec $(BIN)/ojs-fast serve

# Compiled first: tests start servers by the hundred, and PYTHONDONTWRITEBYTECODE would have each compile everything.
test: build ## run all tests
	@$(BIN)/python -m compileall -q ojs_fast tests
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal $(ARGS)

lint: build ## ruff, formatting, mypy, the stub of the compiled core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest ojs_fast._core

fmt: build ## format, and fix what can be fixed
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: build ## measure the server against its baselines
	$(BIN)/python -m loadtest $(ARGS)

bench-guard: build ## a short run that warns of ratios over 20 % below the committed ones; KEEP=1 commits new ones
	$(BIN)/python -m loadtest --rounds 3 --seconds 1 --generator bundled --quiet 10 --only enqueue,fetch,batch \
	    $(if $(KEEP),--keep-ratios,--guard) loadtest/ratios.json $(ARGS)

curves: build ## measure and draw how rates go with connections, payload, queues, backlog, processes: docs/figures
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[plots]'
	$(BIN)/python -m loadtest.curves $(ARGS)

load: build ## Locust's scenarios with HTML reports in load-report: OJS_URL=server (unset: starts one), ARGS=options
	$(BIN)/python -m loadtest.load $(if $(OJS_URL),--url $(OJS_URL)) $(ARGS)

conformance: build ## run the official cases: SUITES=directories, OJS_URL=server (unset: starts one)
	@SUITES='$(SUITES)' OJS_URL='$(OJS_URL)' ARGS='$(ARGS)' $(SHELL) -c "$$RUN_CONFORMANCE"

$(LEVELS): conformance-level-%: ## run the official cases of level N
	@$(MAKE) --no-print-directory conformance SUITES='$(wildcard $(SUITES_DIR)/level-$*-*)'

fuzz: build ## COUNT damaged requests (100,000) to every endpoint, then ten minutes of schemathesis, from SEED (random)
	OJS_FUZZ_COUNT=$(COUNT) OJS_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -q -s tests/fuzz

chaos: build ## three nodes and three NATS servers with every fault at once: SEEDS=runs (20), SECONDS=each (180), SEED=first
	$(BIN)/python -m tests.chaos --seeds $(SEEDS) --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

docker-up: ## build and start COMPOSE (docker/compose.yaml), with OJS_API_KEY set
	docker compose -f $(COMPOSE) up --build --detach --wait

docker-down: ## stop COMPOSE; its volumes stay
	docker compose -f $(COMPOSE) down

clean: ## remove .venv and everything that was built; ./data stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f ojs_fast/_core.c ojs_fast/_core.html ojs_fast/_core*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define RUN_CONFORMANCE
set -eu
[ -n "$$SUITES" ] || { echo 'no cases: set SUITES to directories of cases' >&2; exit 1; }
if [ -z "$$OJS_URL" ]; then
    dir=$$(mktemp -d)
    port=$$($(BIN)/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
    env -u NATS_URL -u OJS_API_KEY -u OJS_HOST OJS_PORT=$$port OJS_DATA_DIR=$$dir/data OJS_ENABLE_RESET=true \
        OJS_LOG_LEVEL=warning $(BIN)/ojs-fast serve & server=$$!
    trap 'kill $$server 2>/dev/null || true; wait $$server || true; rm -rf "$$dir"' EXIT
    trap 'exit 130' INT TERM
    OJS_URL=http://127.0.0.1:$$port
    $(BIN)/python - "$$OJS_URL" $$server <<'END'
import os, sys, time, urllib.request
url, server, deadline = sys.argv[1], int(sys.argv[2]), time.monotonic() + 60
while True:
    try:
        urllib.request.urlopen(url + "/ojs/v1/health", timeout=5).close()
        break
    except OSError as error:
        os.kill(server, 0)
        if time.monotonic() > deadline:
            sys.exit(f"no answer from {url}: {error}")
        time.sleep(0.02)
END
fi
$(BIN)/python -m tests.conformance --url "$$OJS_URL" $$ARGS $$SUITES
endef
export RUN_CONFORMANCE
