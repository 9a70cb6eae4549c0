#!/usr/bin/env bash
# The part of stillframe.sh that runs in the emulated machine: starts a node, runs the script, stops the node, and says
# what was left over. A script that went well but left a process, a namespace or a sandbox's files fails with code 1.
set -euo pipefail

export PATH=/opt/stillframe/build:$PATH STILLFRAME_DATA=/data/node
export STILLFRAME_KERNEL_ARGS=$STILLFRAME_LAB_GUEST_ARGS
mkdir -p "$STILLFRAME_DATA" /data/report
log=/data/report/node.log

stillframe dev --data "$STILLFRAME_DATA" --listen 127.0.0.1:7070 --images /opt/stillframe/build/images \
  --intent-deadline 10m >"$log" 2>&1 &
node=$!
for _ in $(seq 1200); do
  [[ -e $STILLFRAME_DATA/dev.env ]] && break
  kill -0 "$node" 2>/dev/null || break
  sleep 0.1
done
if [[ ! -e $STILLFRAME_DATA/dev.env ]]; then
  echo "lab: the node is not ready; its log:" >&2
  cat "$log" >&2
  exit 1
fi
set -a
# shellcheck disable=SC1091 # written by the node
source "$STILLFRAME_DATA/dev.env"
set +a

code=0
bash /opt/stillframe/script "$@" || code=$?

left=0
leftover() {
  if [[ -n $2 ]]; then
    printf 'lab: left over, %s:\n%s\n' "$1" "$2" >&2
    left=1
  fi
}
# Before the node stops: what belongs to VMs that go on running is found here just the same.
leftover "VMM processes" "$(pgrep -a cloud-hyperviso || true)"
leftover "namespaces" "$(ip netns list | grep '^sf-' || true)"
leftover "sandbox folders" "$(find "$STILLFRAME_DATA/sandboxes" -mindepth 1 -maxdepth 1 2>/dev/null || true)"
leftover "snapshot folders" "$(find "$STILLFRAME_DATA/snapshots" -mindepth 1 -maxdepth 1 2>/dev/null || true)"
for dir in "$STILLFRAME_DATA"/sandboxes/*/; do
  [[ -d $dir ]] || continue
  mkdir -p "/data/report/$(basename "$dir")"
  find "$dir" -maxdepth 1 \( -name '*.log' -o -name '*.json' \) -exec cp -t "/data/report/$(basename "$dir")" {} +
done
kill "$node"
wait "$node" || true
if ((code != 0)); then
  echo "lab: the script ended with $code; the node's log ends with:" >&2
  tail -n 40 "$log" >&2
  exit "$code"
fi
exit "$left"
