# `make help` lists the commands. Everything that is missing is installed or built first.
SHELL := /bin/bash
STACK ?= dev
export PATH := $(CURDIR)/toolchain/node/node_modules/node-linux-$(if $(filter aarch64,$(shell uname -m)),arm64,x64)/bin:$(PATH)

GO_MODULES := host node/init node/relay node/wire node/wrapper node/images node/cni node/cadvisor node/metrics-server \
	standins toolchain/golint toolchain/pulumi-sdks

# The versions of Kubernetes beside the newest, each with its own pins for node/server.
OLDER := $(basename $(notdir $(wildcard node/server/versions/*.mod)))

# The TypeScript, for what looks at the arrows between its folders.
SOURCES := index.ts lib.ts config system artifacts machines servers steps components automation provider toolchain \
	docs bench conformance test

# The flags of the builds (toolchain/builds.ts), so that what those compiled is used again.
GO_FLAGS := GOFLAGS=-trimpath CGO_ENABLED=0
SERVER_FLAGS := GOFLAGS=-trimpath\ -tags=netgo,osusergo,sqlite_omit_load_extension CGO_ENABLED=1

.PHONY: api audit help bootstrap build release up preview destroy status doctor bench profile growth nodes bench-k3s \
	conformance check unit go-lint go-test e2e versions workloads runtimes docs test

help: ## this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

bootstrap:
	@sh toolchain/bootstrap.sh

build: bootstrap ## build everything that a sandbox needs (cached by its inputs)
	@node toolchain/build.ts

up: build ## create the sandbox and the node in it, until a pod runs
	@node automation/cli.ts up $(STACK)

preview: build ## show what `make up` would change
	@node automation/cli.ts preview $(STACK)

destroy: bootstrap ## remove the sandbox, the node, and everything of them
	@node automation/cli.ts destroy $(STACK)

status: bootstrap ## tell how the sandbox and the node are, and what was edited by hand
	@node automation/cli.ts status $(STACK)

doctor: bootstrap ## tell what a sandbox can do, before anything is installed in it
	@node automation/cli.ts doctor $(STACK)

bench: build ## measure the same node in gVisor and natively (bench/README.md); about ten minutes
	@node bench/run.ts

profile: build ## show where the time of an up goes: a table, and a picture in .state/profile.html
	@node bench/profile.ts

nodes: build ## measure clusters of two, five and ten nodes, and a node over SSH (bench/README.md)
	@sh toolchain/bootstrap.sh ssh=openssh-client
	@node bench/nodes.ts

growth: build ## measure a node with 10, 25, 50 and 100 pods and Services (bench/README.md)
	@node bench/growth.ts

bench-k3s: build ## measure the embedded server and a k3s in turn (bench/README.md); K3S=FILE
	@node bench/k3s.ts $(if $(K3S),--k3s '$(K3S)')

conformance: build ## run Kubernetes' own conformance tests (conformance/README.md); GROUPS=all, NODES=2, K3S=FILE, VERSION=1.36
	@node conformance/run.ts $(if $(GROUPS),--groups '$(GROUPS)') $(if $(PROCS),--procs '$(PROCS)') $(if $(NODES),--nodes '$(NODES)') \
		$(if $(K3S),--k3s '$(K3S)') $(if $(VERSION),--kubernetes '$(VERSION)')

check: bootstrap ## types, lint, layout, the arrows between the folders, and the documentation of the library
	@echo "== types, lint, layout, imports, and the documentation of the library"
	@node_modules/.bin/tsc -p .
	@node_modules/.bin/biome check --error-on-warnings .
	@node_modules/.bin/depcruise --config .dependency-cruiser.json --output-type err $(SOURCES)
	@node_modules/.bin/typedoc --emit none --logLevel Warn

unit: bootstrap ## unit tests; T='part of a name' for some of them
	@sh toolchain/bootstrap.sh curl openssl
	@echo "== unit tests"
	@node_modules/.bin/vitest run --project unit $(if $(T),-t '$(T)')

go-lint: build ## look at the Go code with gofmt, staticcheck, and the project's own rules of layout
	@$(GO_FLAGS) sh toolchain/golint.sh $(GO_MODULES) node/coredns
	@$(SERVER_FLAGS) sh toolchain/golint.sh node/server

go-test: build ## the tests of the Go modules
	@set -e; export RUNSC=$$(node toolchain/build.ts --print runsc)/runsc GVISOR_K3S_NODE_BINARY=$$(node toolchain/build.ts --print server)/gvisor-k3s-node; \
	test() { echo "== go test $$1"; (cd $$1 && go vet ./... && go test -vet=off ./...); }; \
	export $(GO_FLAGS); for module in $(GO_MODULES); do test $$module; done; \
	export $(SERVER_FLAGS); test node/server

# Beside what a sandbox takes, the tests have other gVisors, an image registry, Helm, Pulumi's YAML, Debian's crun, an SSH client,
# and, for the upgrades, the Kubernetes before the newest.
e2e: build ## end-to-end tests; FILE=security T='part of a name' for some, KEEP=1 leaves what they made, K3S=FILE takes k3s
	@sh toolchain/bootstrap.sh crun ssh=openssh-client python3=python3-venv javac=default-jdk-headless mvn=maven
	@node toolchain/build.ts traefik runsc-2025-02 registry helm pulumi-yaml pulumi-sdks csi-driver $(if $(filter-out upgrade,$(FILE)),,server-$(lastword $(OLDER)))
	@echo "== end-to-end tests"
	@node_modules/.bin/vitest run --project e2e $(if $(FILE),test/e2e/$(FILE).test.ts) $(if $(T),-t '$(T)')

versions: build ## every version of Kubernetes: Go tests, a node with a pod, and upgrades between all; builds the older servers
	@node toolchain/build.ts $(OLDER:%=server-%)
	@set -e; export $(GO_FLAGS); sh toolchain/golint.sh node/cadvisor/before-1.37; cd node/cadvisor/before-1.37; go test ./...
	@set -e; export RUNSC=$$(node toolchain/build.ts --print runsc)/runsc; for minor in $(OLDER); do \
		export GVISOR_K3S_NODE_BINARY=$$(node toolchain/build.ts --print server-$$minor)/gvisor-k3s-node; \
		export $(SERVER_FLAGS); export GOFLAGS="$$GOFLAGS -modfile=$(CURDIR)/node/server/versions/$$minor.mod"; \
		echo "== go test node/server, Kubernetes $$minor"; \
		(cd node/server && go vet ./... && go test -vet=off ./...); done
	@echo "== upgrades between all versions of Kubernetes"
	@node_modules/.bin/vitest run --project versions $(if $(T),-t '$(T)')

# They are built, or taken from Debian, npm and Maven.
workloads: build ## run others' programs on a node (docs/workloads.md); FILE=name T='part of a name' for some
	@node_modules/.bin/vitest run --project workloads $(if $(FILE),test/workloads/$(FILE).test.ts) $(if $(T),-t '$(T)')

runtimes: build ## run every OCI runtime on every generation of gVisor (docs/runtimes.md)
	@sh toolchain/bootstrap.sh crun
	@node docs/runtimes.ts

release: build ## make release/: npm packages, archives, sums and bills of materials; ARCHS='x64 arm64' for both
	@nice node toolchain/release.ts $(ARCHS)

api: bootstrap ## write the documentation of the library into dist/api, as HTML
	@node_modules/.bin/typedoc

docs: bootstrap ## write the tables of the docs that follow from the code anew
	@node docs/tables.ts

audit: bootstrap ## look for known flaws in what this depends on (npm's and Go's databases are asked)
	@sh toolchain/audit.sh $(GO_MODULES) node/server

test: check unit go-lint go-test e2e ## type check, lint, unit tests, Go tests, end-to-end tests in real sandboxes
