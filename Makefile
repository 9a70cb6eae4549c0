# Stillframe. "make help" lists what there is; README.md and CONTRIBUTING.md say more.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

# Every folder of cmd that holds a main.go is a program: it goes to build/ under its own name, static.
PROGRAMS := $(patsubst cmd/%/main.go,%,$(wildcard cmd/*/main.go))

# Test binaries run one at a time: each starts virtual machines, which want both cores of a small machine.
TEST_PARALLEL ?= 1
TEST_TIMEOUT  ?= 20m
TEST_FLAGS    ?=
FUZZTIME      ?= 20s

GOLANGCI_VERSION    := v2.15.0
GOVULNCHECK_VERSION := v1.9.0

.PHONY: help setup build demo client cluster cluster-down test chaos chaos-bugs model bench egress lab fuzz lint vuln clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install Debian packages, build the programs, the guest kernel and the templates (as root)
	deploy/setup.sh

build: ## Build the programs into build/
	@mkdir -p build
	@for program in $(PROGRAMS); do \
		echo "build/$$program"; \
		CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o "build/$$program" "./cmd/$$program"; \
	done

demo: setup ## Show the main job on real virtual machines: create, snapshot, restore three times, delete
	deploy/demo/run.sh

client: setup ## Run the published Python client of the API against a node, unchanged
	deploy/client/run.sh

cluster: setup ## Bring up three nodes on this machine; build/cluster/cluster.env has their URLs and a key
	deploy/cluster/up.sh

cluster-down: ## Remove every trace of "make cluster"
	deploy/cluster/down.sh

test: setup ## Run all tests, with the race detector, on real virtual machines
	go vet ./...
	go build -race ./...
	go test -race -p $(TEST_PARALLEL) -timeout $(TEST_TIMEOUT) $(TEST_FLAGS) ./...

chaos: setup ## Run a cluster under faults and judge what is left: SEED=, DURATION= (2m), NODES= (3 or 5), CHAOS_FLAGS=
	@mkdir -p build/chaos
	go build -o build/chaos/chaos ./deploy/chaos
	build/chaos/chaos $(if $(SEED),-seed $(SEED)) -duration $(or $(DURATION),2m) -nodes $(or $(NODES),3) $(CHAOS_FLAGS)

chaos-bugs: setup ## Prove that model and chaos test find deliberate bugs (some 12 minutes)
	@mkdir -p build/chaos
	go test -tags bugs -run '^TestModelFindsBugsOfTheProgram$$' ./hypervisor
	go build -o build/chaos/chaos ./deploy/chaos
	build/chaos/chaos -bugs $(if $(SEED),-seed $(SEED))

model: ## Explore larger models of the intent protocol than "make test" does (some minutes)
	go test -tags deep -run '^TestModelDeep$$' -timeout 60m -v ./hypervisor

bench: setup ## Measure against raw VMMs, bare Raft and etcd: a table, and build/bench.json (BENCH_FLAGS="--only intents")
	build/stillframe-bench $(BENCH_FLAGS)

egress: setup ## Look 200 times for a packet that leaves between a restore and its policy (some 10 minutes)
	STILLFRAME_RESTORES=200 go test -run '^TestNoWindow$$' -timeout 60m ./cmd/stillframe/e2e

lab: setup ## Run the conformance suite and a whole node on the real Cloud Hypervisor (STILLFRAME_LAB_CH) in an emulated machine
	deploy/lab/conformance.sh
	deploy/lab/stillframe.sh

fuzz: ## Fuzz every fuzz target for FUZZTIME (20s) each
	@found=0; \
	for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' "$$package" | grep '^Fuzz' || true); do \
			found=1; \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) "$$package"; \
		done; \
	done; \
	if [ "$$found" = 0 ]; then echo "no fuzz target was found" >&2; exit 1; fi

lint: build/tools/golangci-lint-$(GOLANGCI_VERSION) ## Check style, imports between packages and shell scripts
	GOLANGCI=$< .ci/lint

vuln: build/tools/govulncheck-$(GOVULNCHECK_VERSION) ## Look for known vulnerabilities in what is linked (needs a network)
	GOVULNCHECK=$< .ci/vuln

clean: ## Remove all that was built
	rm -rf build

build/tools/golangci-lint-$(GOLANGCI_VERSION):
	GOBIN=$(CURDIR)/build/tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv build/tools/golangci-lint $@

build/tools/govulncheck-$(GOVULNCHECK_VERSION):
	GOBIN=$(CURDIR)/build/tools go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	mv build/tools/govulncheck $@
