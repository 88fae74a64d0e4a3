# make alone prints this help. Go 1.25 or later is the one prerequisite; every
# target that needs Debian packages calls deps for them.
SHELL       := /bin/bash
GO          ?= go
MODULE      := github.com/cleave-san/cleave
LINT        ?= golangci-lint
# Race detection costs five times the time: not for the VMs, whose guests do the work.
RACE_SKIP   := /integration|/plugin/cmd/
ROWS        ?= .

.PHONY: help deps deps-demo deps-lab build test lab bench conformance demo lint fmt vet
.DEFAULT_GOAL := help

help: ## Print this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## Install missing Debian packages (starting no service) and fetch the VMs' kernel
	@integration/lab/deps.sh

deps-demo:
	@integration/lab/deps.sh demo

deps-lab:
	@integration/lab/deps.sh lab

build: ## Build the programs into bin/
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./plugin/cmd/... ./plugin/demo/guestload

demo: deps-demo build ## The whole story on one machine, with two real VMs
	bin/cleave demo

vet:
	$(GO) vet ./...
	$(GO) vet -tags lab ./integration/...

# Power cuts, kills and the like come a second time, all of them: the detector
# makes them ten times as slow, so with it a part has to do. Both halves run even
# if the first fails. VMs one package after the other: each takes a core.
test: deps build vet ## All unit tests, with the race detector, and the quick part of the lab
	@status=0; \
	$(GO) test -race -timeout 20m $$($(GO) list ./... | grep -Ev '$(RACE_SKIP)') || status=1; \
	$(GO) test -run "TestModel|TestPowerCuts|TestKilledUnderLoad|TestProviderReflink" ./arrays/embedded || status=1; \
	$(GO) test -timeout 20m -p 1 $$($(GO) list ./... | grep -E '$(RACE_SKIP)') || status=1; \
	exit $$status

lab: deps-lab build ## Everything that needs VMs or third-party servers; writes lab/results.json
	$(GO) run ./integration/lab/cmd/labrun -run '$(ROWS)' -o lab/results.json

bench: deps ## The benchmarks against their peers; ROWS=regexp chooses; writes bench/results.json
	$(GO) run ./integration/bench/cmd/bench -run '$(ROWS)' -o bench/results.json

conformance: deps ## libiscsi's suite against our target, tgtd and gotgt; writes iscsi/CONFORMANCE.md
	$(GO) run ./iscsi/conformance -o iscsi/CONFORMANCE.md

lint: vet ## Formatting and golangci-lint (go vet alone where it is not installed)
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted (make fmt repairs it):"; echo "$$unformatted"; exit 1; fi
	@if command -v $(LINT) >/dev/null; then $(LINT) run ./...; \
	else echo "lint: golangci-lint is not installed; go vet and gofmt passed"; fi

fmt: ## Format the Go code
	gofmt -w $$(git ls-files '*.go')
