#!/bin/sh
# Lints Go: `golint.sh MODULE...`, with the folders of Go modules. Each finding is a line of its own, with file and line.
# Staticcheck runs with all of its checks; toolchain/golint says what else is looked at.
# The build flags are the environment's (GOFLAGS, CGO_ENABLED): with those of a build, what that compiled is used again.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { echo "golint: give the folders of Go modules, such as standins" >&2; exit 2; }

tool() { # NAME: the path of a tool that toolchain/golint/go.mod pins, built if need be
	(cd toolchain/golint && GOFLAGS=-trimpath CGO_ENABLED=0 go tool -n "$1")
}
staticcheck=$(tool staticcheck)
golint=$(tool golint)

failed=
for module in "$@"; do
	echo "== golint $module"
	"$golint" "$module" || failed=1
	if ! said=$(cd "$module" && "$staticcheck" -checks all ./... 2>&1); then
		printf '%s\n' "$said" | sed "s|^\(\./\)*\([^: ]*\.go:\)|$module/\2|"
		failed=1
	fi
done
[ -z "$failed" ]
