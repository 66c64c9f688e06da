# make demo: the whole way, on a machine with Python 3.11 and git.  make test: the checks of every day; CI runs
# make test-slow and make test-lowest after it.  docs/reference/testing.md has the others.
UV_VERSION := 0.13.9
UV := $(or $(shell command -v uv 2>/dev/null),.tools/bin/uv)
INSTALLED := .venv/.installed

.PHONY: demo test test-slow test-variants test-lowest test-real test-gpu bench-peers faults lint install format pins clean

demo: install
	$(UV) run asrlora demo

# Files in the order of their names: by their number of tests, as xdist has it, the few long ones would come last.
test: install lint
	$(UV) run pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not real"

test-slow: install
	$(UV) run pytest -n 2 --dist loadfile -m "slow and not gpu and not real"

# An hour or two: the tests as processors with other vector lengths and numbers of threads would run them
test-variants: install
	$(UV) run python tests/variants.py $(VARIANTS)

# Five minutes: a part of the tests with the oldest versions that pyproject.toml allows, in .venv-lowest
test-lowest: install
	.ci/lowest.sh $(UV)

# Twenty minutes: published models on recordings of people, in the folder that ASRLORA_REAL names
test-real: install
	OMP_NUM_THREADS=$$(nproc) $(UV) run pytest -m real tests/real

# On a machine with a GPU. Without network: OFFLINE_WHEELS=the folder that tools/offline_wheels.sh has filled
test-gpu: $(if $(OFFLINE_WHEELS),,install)
	$(if $(OFFLINE_WHEELS),tools/offline_python.sh $(OFFLINE_WHEELS),$(UV) run python) -m pytest tests/gpu

# Training against what people use, the demo's base alone in ten minutes; of ASRLORA_REAL too in forty. Run it alone.
bench-peers: install
	$(UV) run asrlora bench peers --log docs/log/benchmarks.md

# Half an hour: faults at chosen moments of a run, and what became of it
faults: install
	$(UV) run python tests/e2e/faults.py --write docs/log/faults.md

lint: install
	$(UV) run ruff check .
	$(UV) run ruff format --check .
	$(UV) run mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt | $(UV)
	@echo "installing into .venv (4.5 GB, mostly torch)"
	@start=$$(date +%s) && $(UV) sync --quiet && touch $@ && echo "installed in $$(( $$(date +%s) - start )) s"

# --target works where the system's Python is externally managed (PEP 668); venv where pip is missing
.tools/bin/uv:
	@echo "uv is not installed; fetching it into .tools/"
	@python3 -m pip install --quiet --disable-pip-version-check --target .tools uv==$(UV_VERSION) \
	  || { python3 -m venv .tools/venv && .tools/venv/bin/pip install --quiet uv==$(UV_VERSION) \
	       && mkdir -p .tools/bin && ln -sf ../venv/bin/uv .tools/bin/uv; } \
	  || { echo "fetching uv failed: install uv, or Python's pip or venv module, and run make again" >&2; exit 1; }

format: install
	$(UV) run ruff check --fix .
	$(UV) run ruff format .

pins: | $(UV)
	$(UV) run --no-project python .ci/pins.py $(UV)

clean:
	rm -rf .venv .venv-lowest .tools build/offline data/demo outputs/demo
