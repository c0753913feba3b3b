# `make help` lists the commands. Everything that is missing is installed or built first.
SHELL := /bin/bash
STACK ?= dev
export PATH := $(CURDIR)/toolchain/node/node_modules/node-linux-$(if $(filter aarch64,$(shell uname -m)),arm64,x64)/bin:$(PATH)

GO_MODULES := node/init node/wrapper node/images node/cni node/server toolchain/plugins

.PHONY: help bootstrap build up preview destroy check unit go-test e2e options test

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

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

check: bootstrap
	@echo "== types and lint"
	@node_modules/.bin/tsc -p .
	@node_modules/.bin/biome lint --error-on-warnings .

unit: bootstrap
	@echo "== unit tests"
	@node_modules/.bin/vitest run --project unit

go-test: build
	@set -e; export RUNSC=$$(node toolchain/build.ts --print runsc)/runsc; \
	for module in $(GO_MODULES); do echo "== go test $$module"; (cd $$module && go vet ./... && go test ./...); done

e2e: build
	@echo "== end-to-end tests"
	@node_modules/.bin/vitest run --project e2e

options: bootstrap ## write the README's table of options anew
	@node docs/options.ts --write

test: check unit go-test e2e ## type check, lint, unit tests, Go tests, end-to-end tests in real sandboxes
