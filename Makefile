# Every target does all of its own set-up: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Ray starts on this machine only; its usage report would ask the network.
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: env demo test test-fast lint bench clean

env: $(STAMP)

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^uv==' constraints.txt)"

# Bytecode is compiled at once: every worker of Ray imports torch and diffusers, in 8 seconds with it and in 17 without.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --compile-bytecode -c constraints.txt -e '.[dev]'
	touch $@

# A fresh folder each time: an output folder never holds two runs. Gradients at the last steps of the sampler and a large
# rate, as sweeps found them, learn in half the time of the preset's settings: benchmarks/RESULTS.md.
demo: $(STAMP)
	run="outputs/demo-$$(date +%Y%m%d-%H%M%S)"; n="$$run/negative_embedding.safetensors"; \
	$(BIN)/python jobs/train_global.py --output-dir "$$run" --optim.steps 90 --optim.batch-size 8 --optim.lr 0.45 \
		--sampling.gradient-steps 2,6 --validation.every 45 --validation.num-prompts 16 --test.num-pairs 128 && \
	$(BIN)/python jobs/tune_prompts.py --init "$$n" --output-dir "$$run-prompts" \
		--num-prompts 16 --tuning.eval-seeds 1 --tuning.steps 3 && \
	$(BIN)/python jobs/evaluate.py --output-dir "$$run-report" --num-prompts 16 --seeds-per-prompt 2 \
		--method null --method handwritten --method "global=$$n" --method "prompt=$$run-prompts"

# Tests that fill the cores by themselves, or wait for other processes, run one by one; the others on all cores.
ALONE := ray or server or model or browser
ON_ALL_CORES := --numprocesses logical --maxprocesses 8 --dist worksteal

test: $(STAMP)
	.ci/chromium
	$(BIN)/python -m pytest $(ON_ALL_CORES) -m 'not ($(ALONE))'
	$(BIN)/python -m pytest -m '$(ALONE)'

test-fast: $(STAMP)
	$(BIN)/python -m pytest $(ON_ALL_CORES) -m 'not ($(ALONE) or slow)'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	find renege_ray jobs tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
