# Every command a person or the CI needs; `make help` lists them.
#
#   make demo      sets itself up, federates a real training job, prints what it won
#   make test      sets itself up and passes every test
#
# Python environments and tools lie outside the tree, in
# $FIRESTEEL_CACHE (default ~/.cache/firesteel); see scripts/env.py.

PYTHON ?= python3
CARGO ?= cargo

# Which tests run: `core` needs NumPy and scikit-learn only.
ALL_GROUPS := core torch tracking
GROUPS ?= $(ALL_GROUPS)
ifneq ($(filter-out $(ALL_GROUPS),$(GROUPS)),)
$(error there is no group `$(filter-out $(ALL_GROUPS),$(GROUPS))`; the groups are: $(ALL_GROUPS))
endif

# What the release build makes, and where Python finds it.
NATIVE := python/firesteel/_native.abi3.so
BINARY := python/firesteel/_bin/firesteel
BUILT := $(or $(CARGO_TARGET_DIR),target)/release

# Tests, examples and demo import the package from the tree. The environment's
# interpreter comes first on the PATH, so that whatever a test starts by name
# is the same one.
export PYTHONPATH := $(CURDIR)/python$(if $(PYTHONPATH),:$(PYTHONPATH))
in_env = PATH="$$(dirname $(1)):$$PATH" $(1)
# $(call env,core): the interpreter of a group's environment, made if need be.
env = "$$($(PYTHON) scripts/env.py $(1))"

.DEFAULT_GOAL := help
.PHONY: help demo test build wheel lint fmt bench bench-quantize soak fuzz clean prune \
	setup test-rust test-python test-examples test-wheel lint-rust lint-house lint-python
.DELETE_ON_ERROR:

help: ## This list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build ## Federate a real training job over real data and show what it won; ARGS="--alpha 0.1"
	@python=$(call env,core) && $(call in_env,"$$python") examples/digits/job.py $(ARGS)

test: setup lint test-rust test-python test-examples test-wheel ## Every test; GROUPS=core for those that need NumPy and scikit-learn only

setup: ## Make the Python environments of the tests
	@for group in $(GROUPS); do $(PYTHON) scripts/env.py $$group >/dev/null || exit 1; done

# Cargo knows what is stale; the copies are replaced whole, by a rename, so
# that a process that has the old one mapped keeps it.
build: ## Build the release binary and the Python module into python/firesteel
	@command -v $(CARGO) >/dev/null || { echo "error: cargo is not on the PATH; Rust 1.95 or newer is needed: https://rustup.rs" >&2; exit 1; }
	$(CARGO) build --release --locked -p firesteel-cli -p firesteel-py
	@mkdir -p $(dir $(BINARY))
	@scripts/place $(BUILT)/firesteel $(BINARY)
	@scripts/place $(BUILT)/lib_native.so $(NATIVE)

wheel: build ## Build the abi3 wheel into dist/
	@python=$(call env,core) && $(call in_env,"$$python") -m maturin build --release --locked --out dist

test-rust: ## Rust tests and doc tests
	@python=$(call env,core) && export PATH="$$(dirname "$$python"):$$PATH" && \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --workspace --locked && $(CARGO) test --workspace --locked --doc; \
	else \
		$(CARGO) test --workspace --locked; \
	fi

# `core` runs what needs no other group; each other group runs what is marked
# with its name, in an environment of its own.
test-python: build ## Python tests, one run per group
	@for group in $(GROUPS); do \
		python=$$($(PYTHON) scripts/env.py $$group) || exit 1; \
		case $$group in core) marks="not torch and not tracking";; *) marks="$$group";; esac; \
		echo "== Python tests: $$group"; \
		$(call in_env,"$$python") -m pytest -m "$$marks" $(PYTEST_ARGS) || exit 1; \
	done

test-examples: build ## Run every example as its reader would
	@for group in $(filter core torch,$(GROUPS)); do \
		python=$$($(PYTHON) scripts/env.py $$group) || exit 1; \
		$(call in_env,"$$python") scripts/examples.py --group $$group || exit 1; \
	done

test-wheel: wheel ## Install the wheel into a bare environment and run a job with it
	@python=$(call env,core) && $(call in_env,"$$python") scripts/try_wheel.py dist

lint: lint-rust lint-house lint-python ## Formatting, clippy, direction of crates, docs, types

lint-rust:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

lint-house:
	$(CARGO) xtask floors
	$(CARGO) xtask docs
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else echo "cargo-deny is not installed: licences and advisories were not checked"; fi

lint-python: build
	@python=$(call env,core) && \
	$(call in_env,"$$python") -m mypy && \
	$(call in_env,"$$python") -m mypy.stubtest firesteel._native --ignore-disjoint-bases

fmt: ## Format the Rust sources
	$(CARGO) fmt --all

bench: build ## Whole-path figures beside FLARE and Flower; ONLY=hello for one part
	@python=$(call env,core) && $(call in_env,"$$python") benches/run.py $(if $(ONLY),--only $(ONLY)) $(BENCH_ARGS)

bench-quantize: build ## Whether quantized messages change where training ends; BENCH_ARGS="--seeds 2"
	@python=$(call env,torch) && $(call in_env,"$$python") benches/quantize/run.py $(BENCH_ARGS)

soak: build ## Simulations in a row, 300 rounds over TLS, cut uploads: leaks and orphans; MINUTES=5
	@python=$(call env,core) && $(call in_env,"$$python") tests/soak.py --minutes $(or $(MINUTES),5) $(SOAK_ARGS)

fuzz: ## Fuzz every decoder of foreign bytes; SECONDS_EACH=60
	@scripts/fuzz $(or $(SECONDS_EACH),60)

clean: ## Remove what was built in the tree (environments stay; see `make prune`)
	$(CARGO) clean
	rm -rf dist $(NATIVE) $(BINARY) bench-results fuzz/target

prune: ## Remove cached environments that no lock file here names
	@$(PYTHON) scripts/env.py --prune
