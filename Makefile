# Each target makes the virtual environment that it needs, and makes it again only when pyproject.toml changed. uv installs
# it in seconds, pip in a minute; pip does where uv fails (it doesn't read pip's settings of mirrors and proxies). What is
# installed is compiled when it is imported: a test needs a small part of it.
# `make test PYTHON=python3.13 VENV=.venv-3.13` does the same with another Python.
PYTHON ?= python3
VENV ?= .venv
VENV_PARITY ?= .venv-parity
# What compiles for TPUs, and for GPUs, that are not there; the latter takes 4.6 GB, and a newer Python.
VENV_DEVICES ?= .venv-devices
VENV_DEVICES_GPU ?= .venv-devices-gpu
PYTHON_GPU ?= python3.12
# Two processes, each of which uses up to 4 GB and mostly one core; one that is done takes over what the other has left.
PARALLEL ?= -n 2 --dist worksteal
TESTS ?= tests
# Most of the tests' time is XLA's compiler, and two fifths of that its optimisations. `make long` runs with them.
# (The second flag is unknown to other releases of JAX, which end at it.)
quickly = --xla_backend_optimization_level=0 $(if $(wildcard $(1)/lib/python*/site-packages/jaxlib-0.10.*),--xla_cpu_use_fusion_emitters=false)
QUICKLY ?= $(call quickly,$(VENV))

# Tests start a hundred processes, each of which would compile Python's sources anew where this is set.
unexport PYTHONDONTWRITEBYTECODE

# What `make shapes-model` makes, and where: docs/training.md. Killed and started again, it goes on.
SHAPES ?= runs/shapes-model
SHAPES_COUNT ?= 40000
SHAPES_BEGIN ?= --model $(SHAPES)/first
SHAPES_STEPS ?= 4000
SHAPES_LEARNING ?= --learning-rate 3e-4 --cosine-decay --ema-decay 0.995 --min-snr-gamma 0
SHAPES_VAE_BEGIN ?= --model $(SHAPES)/first --decoder-only
SHAPES_VAE_STEPS ?= 3000
SHAPES_VAE_LEARNING ?= --learning-rate 2e-4 --cosine-decay --ema-decay 0.998
SHAPES_VAE ?= $(SHAPES)/vae/vae-$(SHAPES_VAE_STEPS)
SHAPES_BUDGETS ?= 4 5 6 8 10

.PHONY: demo test long parity parity-full-size devices devices-full lint format bench shapes-model shapes-plans clean

demo: $(VENV)/drawing  ## draw a picture with the embedded model; installs what drawing takes, and no more
	@echo "Drawing demo.png; the programs for it are compiled the first time, which takes about half a minute."
	$(VENV)/bin/sdjax generate "a big red heart at the top left on a yellow background" -o demo.png
	@echo "demo.png is there. Next: . $(VENV)/bin/activate, and sdjax -h"

test: $(VENV)/installed  ## what needs no PyTorch
	XLA_FLAGS="$(QUICKLY)" $(VENV)/bin/python -m pytest $(PARALLEL) -m "not long" --ignore=tests/parity --ignore=tests/devices $(TESTS)

# One thread of PyTorch in each process: two processes of two wait for each other most of the time.
parity: $(VENV_PARITY)/installed  ## the same weights and noise through PyTorch and through sdjax
	XLA_FLAGS="$(call quickly,$(VENV_PARITY))" OMP_NUM_THREADS=1 $(VENV_PARITY)/bin/python -m pytest $(PARALLEL) -rP --show-capture=stdout --disable-warnings -m "not full_size and not long" tests/parity

long: $(VENV)/installed $(VENV)/browser $(VENV_PARITY)/installed  ## what `make test` and `make parity` leave out: fuzzers, servers, further parity
	$(VENV)/bin/python -m pytest $(PARALLEL) -m long --ignore=tests/parity --ignore=tests/devices tests
	OMP_NUM_THREADS=1 $(VENV_PARITY)/bin/python -m pytest $(PARALLEL) -m "long and not full_size" tests/parity

parity-full-size: $(VENV_PARITY)/installed  ## the same for the published models at their real size: 10 GB, some minutes
	$(VENV_PARITY)/bin/python -m pytest -s -m full_size tests/parity

devices:  ## what a picture takes, compiled for a TPU that is not there
	@$(MAKE) $(VENV_DEVICES)/installed || echo "libtpu, XLA's compiler for TPUs, can't be had here: nothing is compiled for them."
	@! test -e $(VENV_DEVICES)/installed || $(VENV_DEVICES)/bin/python -m pytest --durations=5 tests/devices

# An hour and a half of processor time.
devices-full: $(VENV_DEVICES)/installed $(VENV_DEVICES_GPU)/installed  ## the table of docs/devices.md, of TPUs and GPUs
	mkdir -p runs/devices
	$(VENV_DEVICES)/bin/python -m benchmarks devices --target v5e-1 --target v5e-4 --target v6e-1 --batch 1 --batch 4 \
		--json runs/devices/tpu.json
	$(VENV_DEVICES_GPU)/bin/python -m benchmarks devices --target h200 --batch 1 --batch 4 --json runs/devices/gpu.json
	$(VENV_DEVICES)/bin/python -m benchmarks devices-table runs/devices/tpu.json runs/devices/gpu.json

lint: $(VENV)/installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

bench: $(VENV)/installed  ## the quick benchmarks; `.venv/bin/python -m benchmarks` lists them all
	$(VENV)/bin/python -m benchmarks loop
	$(VENV)/bin/python -m benchmarks start --repeats 1

shapes-model: $(VENV)/installed | $(SHAPES)/first $(SHAPES)/pictures $(SHAPES_VAE)  ## the embedded model anew, and how well it and the present one draw
	$(VENV)/bin/sdjax train text-to-image $(SHAPES)/pictures $(SHAPES)/run $(SHAPES_BEGIN) --vae $(SHAPES_VAE) \
		--steps $(SHAPES_STEPS) $(SHAPES_LEARNING) --store float16
	$(VENV)/bin/python -m benchmarks accuracy shapes $(SHAPES)/run/model-$(SHAPES_STEPS) \
		--sheet $(SHAPES)/sheet.png --json $(SHAPES)/accuracy.json

shapes-plans: $(SHAPES_BUDGETS:%=$(SHAPES)/plans/%.json)  ## its samplers of few evaluations anew

# Two devices, because one leaves half of two cores idle.
$(SHAPES)/plans/%.json: $(SHAPES)/prompts.txt
	XLA_FLAGS=--xla_force_host_platform_device_count=2 $(VENV)/bin/sdjax tune shapes --nfe $* --prompts $< -o $@ --teacher 60

$(SHAPES)/prompts.txt: | $(VENV)/installed
	mkdir -p $(SHAPES)/plans
	$(VENV)/bin/python -m benchmarks prompts $@

$(SHAPES)/pictures: | $(VENV)/installed
	$(VENV)/bin/python -m benchmarks scenes $@ --count $(SHAPES_COUNT)

# The first embedded model, which was trained with PyTorch.
$(SHAPES)/first:
	mkdir -p $(SHAPES)/unpacked
	git archive 7698e1d sdjax/assets/shapes | tar -x -C $(SHAPES)/unpacked
	mv $(SHAPES)/unpacked/sdjax/assets/shapes $@
	rm -r $(SHAPES)/unpacked

$(SHAPES)/vae/vae-$(SHAPES_VAE_STEPS): | $(SHAPES)/first $(SHAPES)/pictures
	$(VENV)/bin/sdjax train vae $(SHAPES)/pictures $(SHAPES)/vae $(SHAPES_VAE_BEGIN) --steps $(SHAPES_VAE_STEPS) \
		$(SHAPES_VAE_LEARNING)

clean:
	rm -rf .venv* build *.egg-info

# $(call install,VENV,WHAT)
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install -q --disable-pip-version-check --no-compile uv && \
		$(1)/bin/uv pip install -q --python $(1)/bin/python --editable "$(2)" || \
		$(1)/bin/pip install -q --disable-pip-version-check --no-compile --editable "$(2)"
endef

# The page's tests, which are skipped where there is no Chromium and no right to install Debian's.
$(VENV)/browser: $(VENV)/installed
	$(call install,$(VENV),.[browser])
	command -v chromium || apt-get install -qq -y chromium || echo "There is no Chromium: the page is not tested."
	@touch $@

$(VENV)/drawing: pyproject.toml
	@echo "Installing sdjax, JAX and what else drawing takes into $(VENV): 0.8 GB, half a minute or two."
	$(call install,$(VENV),.)
	@du -sh $(VENV)
	@touch $@

$(VENV)/installed: pyproject.toml
	@echo "Installing what the tests take besides into $(VENV): 1.4 GB in all."
	$(call install,$(VENV),.[test])
	@touch $(VENV)/drawing $@

$(VENV_DEVICES)/installed: pyproject.toml
	$(call install,$(VENV_DEVICES),.[devices])
	@touch $@

$(VENV_DEVICES_GPU)/installed: PYTHON := $(PYTHON_GPU)
$(VENV_DEVICES_GPU)/installed: pyproject.toml
	$(call install,$(VENV_DEVICES_GPU),.[devices-gpu])
	@touch $@

# PyTorch by pip, which finds a CPU build where one is offered; uv would take the one for CUDA.
$(VENV_PARITY)/installed: pyproject.toml
	$(call install,$(VENV_PARITY),.[test])
	$(VENV_PARITY)/bin/pip install -q --disable-pip-version-check --no-compile --editable ".[test,parity]"
	@touch $@
