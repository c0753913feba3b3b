#!/bin/sh
# Usage: build.sh OUTPUT. Compiles pause with $CC (gcc; aarch64-linux-gnu-gcc for
# arm64). The same compiler gives the same bytes, wherever the source lies.
set -eu
cd "$(dirname "$0")"
exec "${CC:-gcc}" -Os -Wall -Wextra -Werror -std=gnu11 -ffreestanding -fno-stack-protector \
	-fno-asynchronous-unwind-tables -fno-ident -fno-pie -fcf-protection=none \
	-static -no-pie -nostdlib -Wl,--build-id=none,-z,noseparate-code,-z,noexecstack -s -o "$1" pause.c
