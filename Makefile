# Every stage prints its seconds. `make help` lists what there is.
SHELL := /bin/bash
BACKEND ?= local
CASE ?= spine
STAGE = scripts/stage
# What the worlds of the operator are built of.
OPERATOR = operator runtime/contract images/environment

.PHONY: help setup check deny worlds mutants wheel python programs chart e2e test demo bench crds dev-cluster dev-cluster-down

help:
	@echo "make demo [BACKEND=kubernetes]  from nothing to a number, and the cluster is gone again"
	@echo "make test                       everything: check, deny, worlds, mutants, python, chart, e2e"
	@echo "make check                      formatting, and unit tests of what passes the lints"
	@echo "make deny                       licenses, versions and sources of all dependencies"
	@echo "make worlds                     20,000 worlds in which an operator meets every fault"
	@echo "make mutants                    breaks core and operator on purpose: a test notices each time"
	@echo "make wheel | python             the Python package, into .tools | with its types, doctests and tests"
	@echo "make chart [UPDATE=1]           lints the chart and compares its renderings with the committed ones"
	@echo "make e2e                        tests on a real Kubernetes, most of them once more with an operator"
	@echo "                                of listed namespaces; on the one of KUBECONFIG, with its"
	@echo "                                chart and images, when EBBTIDE_E2E_CLUSTER=existing"
	@echo "make bench [CASE=spine]         figures beside the peers'; CASE=operator: many clusters"
	@echo "make crds                       crds/ and docs/reference.md from the types of operator/api"
	@echo "make dev-cluster                that Kubernetes with the chart installed; again: with what is new"
	@echo "make dev-cluster-down           away again without a trace"

setup:
	@scripts/setup

check: setup
	@$(STAGE) format cargo fmt --all --check
	@$(STAGE) build cargo build --workspace --locked --quiet
	@$(STAGE) unit --of . cargo test --workspace --exclude ebbtide-sim --exclude ebbtide-operator-sim --locked --quiet
	@$(STAGE) sims --of "$(OPERATOR) runtime/core runtime/sim" scripts/sims

deny: setup
	@$(STAGE) deny scripts/deny

wheel: setup
	@$(STAGE) wheel scripts/wheel

python: wheel
	@$(STAGE) python --of . scripts/python-checks

programs:
	@$(STAGE) programs e2e/kube/build.sh

chart: setup programs
	@$(STAGE) chart scripts/chart

e2e: wheel
ifneq ($(EBBTIDE_E2E_CLUSTER),existing)
	@$(STAGE) previous scripts/previous
	@$(STAGE) dev-cluster e2e/dev-cluster up
endif
	@$(STAGE) e2e e2e/run
ifneq ($(EBBTIDE_E2E_CLUSTER),existing)
	@$(STAGE) e2e-listed --of . e2e/run listed
endif

mutants: setup
	@$(STAGE) mutants-core --of "runtime/core runtime/sim" scripts/mutants core
	@$(STAGE) mutants-operator --of "$(OPERATOR)" scripts/mutants operator

worlds: setup
	@$(STAGE) worlds --of "$(OPERATOR)" scripts/worlds

test: check deny worlds mutants python chart e2e

# The programs of the Kubernetes are built beside ours.
demo:
	@$(MAKE) --no-print-directory -j2 wheel $(if $(filter kubernetes,$(BACKEND)),programs)
	@$(STAGE) demo examples/run $(BACKEND)

bench: wheel
	@$(STAGE) bench-$(CASE) scripts/bench $(CASE)

crds: setup
	@. scripts/environment.sh && cargo build --quiet --workspace && \
	  "$$CARGO_TARGET_DIR/debug/ebbtide" crd cluster >crds/clusters.yaml && \
	  "$$CARGO_TARGET_DIR/debug/ebbtide" crd clusterjob >crds/clusterjobs.yaml && \
	  scripts/reference >docs/reference.md

dev-cluster: wheel
	@e2e/dev-cluster up

dev-cluster-down:
	@e2e/dev-cluster down
