#!/usr/bin/env bash
# Removes every trace of what up.sh made: daemons, virtual machines, namespaces, the bridge, files. Only processes whose
# pid the cluster's own folders record are ended, and only while they are those processes. May be repeated.
set -euo pipefail
# shellcheck source=deploy/cluster/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# gone PID BEGAN: waits until that process is no more.
gone() {
  for _ in $(seq 200); do
    [ "$(started "$1")" = "$2" ] || return 0
    sleep 0.05
  done
  echo "process $1 does not end" >&2
  return 1
}

# The daemons first, all of them at once: what they were to do with the machines is over. They need not end in order,
# for nothing of theirs stays.
for node in "${nodes[@]}"; do
  if alive "$dir/$node/daemon.pid"; then
    read -r pid began <"$dir/$node/daemon.pid"
    kill -KILL "$pid"
    gone "$pid" "$began"
  fi
done

for sandbox in "$dir"/*/data/sandboxes/sbx-*; do
  [ -d "$sandbox" ] || continue
  # A VMM that was started in the daemon's last instant is not recorded yet: the socket in its arguments names it.
  pids=$(jq -r '.pid // empty' "$sandbox/runtime.json" 2>/dev/null || true)
  pids="$pids $(grep -lsF -- "$sandbox/" /proc/[0-9]*/cmdline | cut -d/ -f3 || true)"
  for pid in $pids; do
    began=$(started "$pid")
    if [ -n "$began" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$sandbox/"; then
      kill -KILL "$pid" 2>/dev/null || true
      gone "$pid" "$began"
    fi
  done
  name=sf-$(basename "$sandbox")
  if [ -e "/run/netns/$name" ]; then ip netns del "$name"; fi
done
for node in "${nodes[@]}"; do
  # Namespaces that the node kept ready bear the beginning of its id.
  if [ -s "$dir/$node/data/node-id" ]; then
    for ready in /run/netns/sfpool-"$(head -c 8 "$dir/$node/data/node-id")"-*; do
      if [ -e "$ready" ]; then ip netns del "$(basename "$ready")"; fi
    done
  fi
  # The link is not left to the end of its namespace, which the kernel takes its time for.
  if ip link show "sfc-$node" >/dev/null 2>&1; then ip link del "sfc-$node"; fi
  if [ -e "/run/netns/sfc-$node" ]; then ip netns del "sfc-$node"; fi
done
if ip link show "$bridge" >/dev/null 2>&1; then ip link del "$bridge"; fi
rm -rf "$dir"
