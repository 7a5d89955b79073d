# Every stage prints its seconds. `make help` lists what there is.
SHELL := /bin/bash
BACKEND ?= local
CASE ?= spine
STAGE = scripts/stage

.PHONY: help bench mutants demo test check lint unit wheel python chart e2e crds dev-cluster dev-cluster-down setup

help:
	@echo "make demo [BACKEND=kubernetes]  from nothing to a number, then nothing again"
	@echo "make test                       everything, with a real Kubernetes"
	@echo "make check                      formatting, lints and unit tests"
	@echo "make bench [CASE=spine]         figures beside the peers'"
	@echo "make dev-cluster | dev-cluster-down"

setup:
	@scripts/setup

check: setup
	@$(STAGE) format cargo fmt --all --check
	@$(STAGE) lint cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	@$(STAGE) unit cargo test --workspace --locked --quiet

wheel: setup
	@$(STAGE) wheel scripts/wheel

python: wheel
	@$(STAGE) python scripts/python-checks

e2e: wheel
	@$(STAGE) dev-cluster e2e/dev-cluster up
	@$(STAGE) e2e e2e/run

mutants: setup
	@$(STAGE) mutants scripts/mutants

test: check mutants python e2e

demo: wheel
	@$(STAGE) demo examples/run $(BACKEND)

bench: wheel
	@$(STAGE) bench-$(CASE) scripts/bench $(CASE)

crds: setup
	@. scripts/environment.sh && cargo run --quiet -p ebbtide -- crd >crds/clusters.yaml

dev-cluster: wheel
	@e2e/dev-cluster up

dev-cluster-down:
	@e2e/dev-cluster down
