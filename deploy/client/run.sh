#!/usr/bin/env bash
# Runs the published Python client of the API, unchanged, against a node of this machine: only the two variables of
# dev.env tell it where to go. make client builds what this needs and calls it.
#
#   LEAP0_VERSION  version of the client (default: the one this was last seen to work with)
#   CLIENT_PYTHON  the interpreter (default: the newest python3 of this machine from 3.12 on, else python3)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
version=${LEAP0_VERSION:-0.8.0}
work=$(mktemp -d /tmp/stillframe-client.XXXXXX)
node=

# shellcheck disable=SC2317 # called by the trap
cleanup() {
  local code=$?
  if [ -n "$node" ]; then
    kill "$node" 2>/dev/null || true
    wait "$node" 2>/dev/null || true
  fi
  [ "$code" -eq 0 ] || [ ! -f "$work/node.log" ] || tail -n 20 "$work/node.log" >&2
  rm -rf "$work"
  exit "$code"
}
trap cleanup EXIT

# The client's own types cannot be imported by Python before 3.12 (a rule of the validation library that it uses).
find_python() {
  local candidate
  for candidate in python3.14 python3.13 python3.12 "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python3; do
    # A version manager's stand-in is found, too, but does not run.
    if "$candidate" -c '' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  command -v python3
}
python=${CLIENT_PYTHON:-$(find_python)}
echo "client: leap0 $version on $("$python" --version)"
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "leap0==$version"

"$root/build/stillframe" dev --data "$work/data" --listen 127.0.0.1:0 >"$work/node.log" 2>&1 &
node=$!
for _ in $(seq 300); do
  [ -f "$work/data/dev.env" ] && break
  kill -0 "$node" 2>/dev/null || exit 1
  sleep 0.1
done
set -a
# shellcheck disable=SC1091 # written by the node
. "$work/data/dev.env"
set +a
"$work/venv/bin/python" "$root/deploy/client/examples.py"
[ -z "$(find "$work/data/sandboxes" "$work/data/snapshots" -mindepth 1 | head -n 1)" ] ||
  { echo "client: something is left in the data folder" >&2; exit 1; }
echo "client: all examples ran to their end"
