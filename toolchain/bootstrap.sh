#!/bin/sh
# Installs what is missing for everything else: Debian packages, Node.js 24, the npm packages. What is there is left alone.
# Prints nothing but what it does. Usage: bootstrap.sh [PROGRAM|PROGRAM=PACKAGE ...], with further programs that are needed and their Debian packages
set -eu
cd "$(dirname "$0")/.."

need() { # PROGRAM WHERE-TO-GET-IT
	command -v "$1" >/dev/null || { echo "bootstrap: $1 is needed: $2" >&2; exit 1; }
}
need go "Go 1.26.6 or newer, from go.dev or your distribution"
need npm "npm, which comes with Node.js"

packages=
[ -e /bin/busybox ] && ! grep -q /ld- /bin/busybox || packages="$packages busybox-static"
command -v ip >/dev/null || packages="$packages iproute2"
command -v gcc >/dev/null || packages="$packages gcc libc6-dev"
command -v patch >/dev/null || packages="$packages patch"
command -v pkg-config >/dev/null || packages="$packages pkg-config"
[ -e /usr/include/seccomp.h ] || packages="$packages libseccomp-dev"
for wanted in "$@"; do
	command -v "${wanted%=*}" >/dev/null || packages="$packages ${wanted#*=}"
done
if [ -n "$packages" ]; then
	echo "installing$packages"
	need apt-get "install these by your distribution's means:$packages"
	apt-get update -qq
	# shellcheck disable=SC2086 # a list of words
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
fi

major=$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/')
if [ "${major:-0}" -lt 24 ] && [ ! -d toolchain/node/node_modules ]; then
	echo "installing Node.js 24"
	npm ci --prefix toolchain/node --ignore-scripts --no-audit --no-fund --loglevel=error
	# Each machine takes one of two optional packages, of which npm does not say that it could not be fetched.
	[ -d toolchain/node/node_modules ] || { echo "bootstrap: npm could not fetch Node.js 24; try again, or install Node.js 24 from nodejs.org" >&2; exit 1; }
fi

# The lock file that was installed lies beside the packages: another one means another installation.
if ! cmp -s package-lock.json node_modules/.installed-lock; then
	echo "installing npm packages"
	# Not `npm ci`: npm leaves the linter's packages for other platforms out of the lock file, and then refuses it.
	npm install --no-save --ignore-scripts --no-audit --no-fund --loglevel=error
	cp package-lock.json node_modules/.installed-lock
fi
