#!/bin/sh
# Looks for known flaws in what this project depends on, in npm's and Go's databases: `audit.sh MODULE...`, with the folders of Go modules.
# A flaw is an error. So is a database that is not reached, unless AUDIT=where-reached: CI may run where there are only package registries.
set -eu
cd "$(dirname "$0")/.."

unreached() { # WHICH WHAT-IT-SAID
	echo "audit: $1 is not reached, so nothing was looked up in it: $(printf '%s\n' "$2" | grep -m 1 -E 'audit|govulncheck|dial|Get' || true)"
	[ "${AUDIT:-}" = where-reached ] || exit 1
}

echo "== npm audit"
if said=$(npm audit --audit-level=high 2>&1); then
	printf '%s\n' "$said"
elif printf '%s\n' "$said" | grep -q 'audit endpoint returned an error'; then
	unreached "npm's database" "$said"
else
	printf '%s\n' "$said"
	exit 1
fi

# The pins beside a module's own: the server's, of older versions of Kubernetes.
set -- "$@" $(ls node/server/versions/*.mod)

govulncheck=$(mktemp -d)/govulncheck
trap 'rm -rf "$(dirname "$govulncheck")"' EXIT
GOBIN=$(dirname "$govulncheck") go install golang.org/x/vuln/cmd/govulncheck@v1.9.0

for module in "$@"; do
	echo "== govulncheck $module"
	folder=$module
	flags=
	case $module in
	*.mod) folder=node/server flags=-modfile=$PWD/$module ;;
	esac
	if said=$(cd "$folder" && GOFLAGS="${GOFLAGS:-} $flags" "$govulncheck" ./... 2>&1); then
		printf '%s\n' "$said"
	elif printf '%s\n' "$said" | grep -q 'fetching vulnerabilities'; then
		unreached "Go's database" "$said"
		break
	else
		printf '%s\n' "$said"
		exit 1
	fi
done
