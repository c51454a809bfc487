# Every command of the project. `make help` lists them; each installs what it needs.

.DEFAULT_GOAL := help
# The targets below share one build folder and rely on their order, so `make -j` must not mix them.
.NOTPARALLEL:

# A fresh rustup puts cargo here, and a non-interactive shell often does not look there.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Queries are checked against the committed `.sqlx`, so no build needs a database.
export SQLX_OFFLINE := true

CARGO_OUT := $(abspath $(or $(CARGO_TARGET_DIR),target))
VENV := .venv/installed
PYTHON := .venv/bin/python

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## build and start the server; settings as ARGS="--help"
	@scripts/setup run
	cargo build --release --locked
	@exec $(CARGO_OUT)/release/acontextd $(ARGS)

.PHONY: test
test: $(VENV) ## all tests, with everything they need
	@scripts/setup run test
	@# Built first, so that what the two test runners say stands together at the end.
	cargo test --locked --no-run
	cargo test --locked
	@# `cargo test` has built the program for its own tests; the Python tests start the same one.
	ACONTEXTD_BIN=$(CARGO_OUT)/debug/acontextd $(PYTHON) -B -m pytest tests/sdk -q -p no:cacheprovider

.PHONY: check
check: tools fmt licences query-data lint doc docker-files test ## everything that must be green: format, lints, licences, generated files, tests

.PHONY: prepare
prepare: ## rewrite .sqlx after a change of a query or a migration
	@scripts/setup run
	scripts/query-data write

.PHONY: openapi
openapi: ## rewrite openapi/openapi.json after a change of the interface
	@scripts/setup run
	UPDATE_OPENAPI=1 cargo test --locked openapi

.PHONY: bench
bench: ## run the benchmarks; which ones as ARGS="..."
	@scripts/setup run
	cargo build --release --locked
	ACONTEXTD_BIN=$(CARGO_OUT)/release/acontextd bench/run $(ARGS)

.PHONY: clean
clean: ## remove what was built
	cargo clean
	rm -rf .venv

# ----- the parts of `check`, cheapest first -----

.PHONY: setup
setup: tools $(VENV)

.PHONY: tools
tools:
	@scripts/setup run test lints

.PHONY: fmt
fmt:
	cargo fmt --check

.PHONY: licences
licences:
	scripts/licences

# Before clippy, which would report a stale .sqlx once for every query.
.PHONY: query-data
query-data:
	scripts/query-data check

.PHONY: lint
lint:
	cargo clippy --all-targets --locked -- -D warnings

# Also the one step without the dev-dependencies' features: it fails where the program would only build
# because a test switches a feature on.
.PHONY: doc
doc:
	cargo check --locked
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --locked

.PHONY: docker-files
docker-files: $(VENV)
	cargo test --locked --no-run
	$(PYTHON) -B scripts/docker-files $(CARGO_OUT)/debug/acontextd

# The stamp is written last, so a broken installation is made anew.
$(VENV): tests/sdk/requirements.txt
	@scripts/setup run test
	python3 -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/sdk/requirements.txt
	@touch $@
