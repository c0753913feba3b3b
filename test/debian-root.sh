#!/bin/sh
# Unpacks Debian packages and all that they depend on into a folder; nothing is installed and no maintainer script runs.
# Usage: debian-root.sh ROOT CACHE PACKAGE...   (ROOT is made anew; CACHE keeps the .deb files)
set -eu
root=$1 cache=$(realpath -m "$2"); shift 2
mkdir -p "$cache/partial"; rm -rf "$root"; mkdir -p "$root"
for dir in bin sbin lib lib64; do mkdir -p "$root/usr/$dir"; ln -s "usr/$dir" "$root/$dir"; done
# apt's own lock of the cache is not waited for.
exec 9> "$cache/gvisor-k3s.lock"; flock 9
# With an empty status file apt lists the whole closure, and leaves out what is essential but not depended on.
apt="apt-get -o Dir::State::status=/dev/null -o Dir::Cache::archives=$cache -o APT::Install-Recommends=false -o APT::Sandbox::User=root"
$apt -qqy --download-only install "$@" > /dev/null
$apt -s install "$@" | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\).*/\1 \2/p' > "$root.packages"
exec 9>&-
while read -r name version; do
  deb=$(echo "$cache/${name}_$(echo "$version" | sed 's/:/%3a/')"_*.deb)
  dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink $(for dir in doc man locale info lintian bash-completion; do echo "--exclude=./usr/share/$dir"; done)
done < "$root.packages"
