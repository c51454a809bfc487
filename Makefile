# The commands of the project. `make help` lists them; each installs what it requires.

.DEFAULT_GOAL := help
# The targets share one build directory and depend on their order, so `make -j` must not run them concurrently.
.NOTPARALLEL:

# rustup installs cargo here, which is often not on the PATH of a non-interactive shell.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Queries are checked against the committed `.sqlx`, so no build needs a database.
export SQLX_OFFLINE := true

CARGO_OUT := $(abspath $(or $(CARGO_TARGET_DIR),target))
VENV := .venv/installed
PYTHON := .venv/bin/python

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## build and start the server; pass settings as ARGS="--help"
	@scripts/setup run
	cargo build --release --locked
	@exec $(CARGO_OUT)/release/acontextd $(ARGS)

.PHONY: test
test: $(VENV) ## run all tests
	@scripts/setup run test
	@# Built first, so that the results of both test runners are at the end of the output.
	cargo test --locked --no-run
	cargo test --locked
	@# The Python tests start the programs that `cargo test` has built. It also builds the examples.
	ACONTEXTD_BIN=$(CARGO_OUT)/debug/acontextd ACONTEXTD_CHECK_HISTORY=$(CARGO_OUT)/debug/examples/check-history $(PYTHON) -B -m pytest tests/sdk -q -p no:cacheprovider

.PHONY: check
check: tools fmt licenses words spelling sqlx lint doc docker test ## run everything that CI runs: format, lints, licenses, wording, generated files, tests

.PHONY: prepare
prepare: ## regenerate .sqlx after a change of a query or a migration
	@scripts/setup run
	scripts/sqlx-prepare write

.PHONY: openapi
openapi: ## regenerate openapi/openapi.json after a change of the API
	@scripts/setup run
	UPDATE_OPENAPI=1 cargo test --locked openapi

.PHONY: bench
bench: ## run the benchmarks; select them with ARGS="..."
	@scripts/setup run
	bench/run $(ARGS)

.PHONY: acceptors
acceptors: ## check the laws of message histories for about an hour; set the number of cases with CASES=...
	@scripts/setup run test
	HISTORY_CASES=$(or $(CASES),60000) cargo test --locked --test it histories::

.PHONY: clean
clean: ## remove everything that was built
	cargo clean
	rm -rf .venv

# ----- the steps of `check`, cheapest first -----

.PHONY: setup
setup: tools $(VENV)

.PHONY: tools
tools:
	@scripts/setup run test lints

.PHONY: fmt
fmt:
	cargo fmt --check

.PHONY: licenses
licenses:
	scripts/check-licenses

.PHONY: words
words:
	scripts/check-words

.PHONY: spelling
spelling: $(VENV)
	.venv/bin/typos

# Before clippy, which would report an outdated .sqlx once per query.
.PHONY: sqlx
sqlx:
	scripts/sqlx-prepare check

.PHONY: lint
lint:
	cargo clippy --all-targets --locked -- -D warnings

# The only step without the features of the dev-dependencies: it fails if the program builds only because a test enables a
# feature.
.PHONY: doc
doc:
	cargo check --locked
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --locked

.PHONY: docker
docker: $(VENV)
	cargo test --locked --no-run
	$(PYTHON) -B scripts/check-docker $(CARGO_OUT)/debug/acontextd

# The stamp is written last, so that an incomplete installation is repeated.
$(VENV): tests/sdk/requirements.txt
	@scripts/setup run test
	python3 -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/sdk/requirements.txt
	@touch $@
