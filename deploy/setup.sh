#!/usr/bin/env bash
# Brings a Debian 12 machine to the point where Stillframe can be built, run and tested: Debian packages, the binaries in
# build/, and the guest's kernel and templates in build/images. Safe to repeat: what is there and current is left alone.
# Go has to be there already (its version is in go.mod).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }

fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

command -v go >/dev/null || fail "Go is not installed; go.mod says which version is needed"
[ "$(id -u)" = 0 ] || fail "has to run as root: it installs packages and makes file systems"
command -v apt-get >/dev/null || fail "needs Debian's apt-get; deploy/packages.txt lists what to install elsewhere"

say "Debian packages"
mapfile -t wanted < <(sed 's/#.*//' deploy/packages.txt | awk 'NF { print $1 }')
missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o DPkg::Lock::Timeout=120 update -q
  apt-get -o DPkg::Lock::Timeout=120 install -q -y --no-install-recommends "${missing[@]}"
else
  echo "all ${#wanted[@]} are installed"
fi

say "Binaries"
make --no-print-directory build

say "Guest kernel and templates"
deploy/images/build.sh build/images
