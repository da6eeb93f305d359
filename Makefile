# Every target is one line in `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# sudo may hide a Go that is not in its secure_path.
GO ?= $(firstword $(shell command -v go) $(wildcard /usr/local/go/bin/go /usr/lib/go/bin/go /snap/bin/go) go)
export PATH := $(PATH):$(patsubst %/,%,$(dir $(GO))):/usr/sbin:/sbin
export CGO_ENABLED := 0
export GOTOOLCHAIN ?= auto

TOOLS := $(CURDIR)/bin/tools
GOLANGCI_LINT := v2.15.0
TESTBED := bin/testbed

KUBE_VERSION = $(shell $(GO) list -m -f '{{.Version}}' k8s.io/kubernetes)
MOOT_VERSION = $(shell sed -n 's/^const Version = "\(.*\)"/\1/p' node/version.go)
KUBE_MINOR = $(word 2,$(subst ., ,$(KUBE_VERSION)))
VERSION_PKG := k8s.io/component-base/version
LDFLAGS = -s -w -X $(VERSION_PKG).gitVersion=$(KUBE_VERSION)+moot-$(MOOT_VERSION) \
	-X $(VERSION_PKG).gitMajor=1 -X $(VERSION_PKG).gitMinor=$(KUBE_MINOR) \
	-X $(VERSION_PKG).gitTreeState=clean

# Packages that build without k8s.io/kubernetes: quick to test, fit for -race.
PURE := ./ebpf/... ./gossip ./gossip/crdt/... ./gossip/store/... ./gossip/etcd ./gossip/etcd/difftest/... ./node/join/... ./node/backup/... ./node/pki/...
FUZZTIME ?= 20s
NODES ?= 3
SIM ?= 3,5,10,50
OBJECTS ?= 1000
YEARS ?= 20000
SUITES ?= bookworm trixie

ACCEPT := $(addprefix accept-,up watch keep roam outage cut join chaos failover blink offline putback services drop names traces stranger)

.PHONY: help build shim deps generate fmt lint test unit e2e race fuzz bench bench-services bench-nodeport sim sim-objects sim-years conformance charts vm verify-kernels up down demo \
	accept $(ACCEPT) bin/accept

help: ## print this
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

deps: ## install what the host lacks through its package manager, and say so
	@testbed/host-packages

build: shim ## build bin/moot, bin/testbed, bin/testbed-web and bin/kubectl
	@echo "building bin/moot (the first build takes 15 minutes or more on 2 cores)"
	@mkdir -p bin
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/moot ./cmd/moot
	$(GO) build -o $(TESTBED) ./cmd/testbed
	$(GO) build -trimpath -o bin/testbed-web ./testbed/web
	@ln -sfn moot bin/kubectl

shim: ## build the second binary (containerd shim, CNI plugin, pause), which bin/moot carries
	@GO="$(GO)" node/runtime/embedded/build

generate: ## generate code that is committed
	$(GO) generate ./...

fmt: ## format the code
	gofmt -w $$(git ls-files '*.go')

$(TOOLS)/golangci-lint-$(GOLANGCI_LINT):
	@mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT)
	@mv $(TOOLS)/golangci-lint $@

lint: $(TOOLS)/golangci-lint-$(GOLANGCI_LINT) ## check the code's form and its import table
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$< run ./...

test: deps build unit e2e ## build, then every test: unit, storage suite, differential, end to end

# The testbed looks for leaks on the whole machine, so its tests run alone.
unit: shim ## tests that need no cluster
	$(GO) test -count=1 -timeout 30m $$($(GO) list ./... | grep -v testbed)
	$(GO) test -count=1 -timeout 30m -p 1 $$($(GO) list ./... | grep testbed | grep -v '/testbed/e2e')

e2e: ## one node, then a cluster of three, end to end (root)
	$(GO) test -count=1 -timeout 40m -p 1 ./testbed/e2e/...

race: ## the pure packages under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 30m $(PURE)

fuzz: ## each fuzz target for FUZZTIME
	@for pkg in $$($(GO) list ./gossip/... ./node/join/... ./node/backup/... ./node/pki/...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$pkg || exit 1; \
		done; \
	done

bench: deps build ## the rows of docs/BENCHMARKS.md (root)
	@docs/bench

bench-services: ## connections through 1 to 30,000 Services, endpoints changed: eBPF, nftables, iptables, none (root, 30 minutes)
	$(GO) run ./node/net/proxy/bench

bench-nodeport: ## packets a second through a NodePort: eBPF, nftables, iptables (root)
	$(GO) test ./ebpf -run '^$$' -bench NodePort -benchtime 9x

sim: ## clusters of SIM nodes on a simulated network, real serf and replication: times, traffic, memory
	MOOT_SIM=$(SIM) $(GO) test -count=1 -timeout 3h -v -run 'TestScale$$' ./gossip/simulate

sim-objects: ## what OBJECTS objects of 1 KB (1000,10000 ...) cost a node of simulated clusters of SIM nodes
	MOOT_SIM=$(SIM) MOOT_OBJECTS=$(OBJECTS) $(GO) test -count=1 -timeout 3h -v -run 'TestObjects$$' ./gossip/simulate

sim-years: ## a seeded history of faults over YEARS node-hours (1000000 take hours)
	MOOT_YEARS=$(YEARS) $(GO) test -count=1 -timeout 24h -v -run 'TestYears$$' ./gossip/simulate/years

conformance: build ## upstream's conformance suite, unmodified, on three nodes (root, an hour)
	testbed/conformance/run

charts: build ## helm, metrics-server, cert-manager, Prometheus operator, unmodified, under faults (root, 15 minutes and their builds)
	testbed/charts/run

vm: build ## boot a stock Debian 12 under software emulation and try a node in it (root, 20 minutes)
	testbed/vm/boot --install

verify-kernels: ## load every eBPF program on SUITES' stock kernels under QEMU and try it there (root, half an hour)
	GO="$(GO)" testbed/vm/kernels --install $(SUITES)

bin/accept: build
	@$(GO) build -o $@ ./testbed/accept

accept: $(ACCEPT) ## all accept-… targets, one after the other (root, two hours)

accept-up: up ## what make up gives: 3 nodes, the demo on them, equal digests; and down (root)
	@$(TESTBED) exec n2 -- kubectl get nodes,pods -o wide && $(TESTBED) exec n3 -- moot status; \
		held=$$?; $(TESTBED) down && exit $$held

accept-watch: bin/accept ## 5 nodes: a change through n4 is seen by a watch on n1; equal digests (root)
	bin/accept watch

accept-keep: bin/accept ## keys rotated under writes; backup into the living and a new cluster (root)
	bin/accept keep

accept-roam: bin/accept ## clients moved between nodes hundreds of times under load miss nothing (root)
	bin/accept roam

accept-outage: bin/accept ## crash 4 of 5, the leader first: the last one serves; all come back (root)
	bin/accept outage

accept-cut: bin/accept ## cut 2|3 for a minute, edit on both sides, heal: merged, losses listed (root)
	bin/accept cut

accept-join: bin/accept ## a new machine takes over 100,000 objects of 5 KB, and serves them (root)
	bin/accept join

accept-chaos: bin/accept ## kills and crashes under write load for MOOT_SOAK, 30m by default (root)
	bin/accept chaos

accept-failover: bin/accept ## a dead node's pods elsewhere; the next leader's first action (root)
	bin/accept failover

accept-blink: bin/accept ## a pause of a second and restarts of the daemon move nothing (root)
	bin/accept blink

accept-offline: bin/accept ## all but one down, that one boots with no network: pods and kubectl (root)
	bin/accept offline

accept-putback: bin/accept ## a disk led back to a snapshot, and writes alone: nothing is missing (root)
	bin/accept putback

accept-services: bin/accept ## Services of every kind, from pods, nodes and outside: answers, spread, policies (root)
	bin/accept services

accept-drop: bin/accept ## connections every 10 ms under restarts, kills, crashes: which fail, for how long (root)
	bin/accept drop

accept-names: bin/accept ## DNS names of every kind from every node; the dead and those cut off are left out (root)
	bin/accept names

accept-traces: bin/accept ## eBPF programs, maps and links of the machine before and after a cluster (root)
	bin/accept traces

accept-stranger: bin/accept ## port scan, garbage, replay, no token: nothing leaks or crashes (root)
	bin/accept stranger

up: deps build ## start a cluster in network namespaces, with a small web app (root)
	$(TESTBED) up --nodes $(NODES)
	$(TESTBED) demo

down: ## end the cluster and leave nothing behind (root)
	$(TESTBED) down

demo: ## deploy the small web app into the running cluster (root)
	$(TESTBED) demo
