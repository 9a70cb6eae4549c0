#!/usr/bin/env bash
# The shortest proof that a node works: a sandbox, a command, a snapshot, a restore in which memory and disk are those of
# the snapshot's instant, and everything deleted. For deploy/lab/stillframe.sh, or any node that the environment names.
set -euo pipefail

id() { jq -r .id; }
run() { stillframe exec "$1" -- sh -c "$2"; }
step() { printf '%5d s  %s\n' "$SECONDS" "$*"; }

stillframe node status
source=$(stillframe sandbox create --template system/busybox --memory 512MiB --timeout 1h -o json | id)
step "created $source"
memory=$(run "$source" 'head -c 16 /dev/urandom | od -An -tx1 | tr -d " \n" | tee /dev/shm/nonce')
disk=$(run "$source" 'head -c 16 /dev/urandom | od -An -tx1 | tr -d " \n" | tee /root/nonce; sync')
step "memory nonce $memory, disk nonce $disk"

snapshot=$(stillframe snapshot create "$source" --name smoke -o json | id)
step "snapshot $snapshot"
run "$source" 'echo moved | tee /dev/shm/nonce /root/nonce' >/dev/null
clone=$(stillframe snapshot restore smoke --timeout 1h -o json | id)
step "restored $clone"
[[ $(run "$clone" 'cat /dev/shm/nonce') == "$memory" ]] || { echo "the clone has lost its memory" >&2; exit 1; }
[[ $(run "$clone" 'cat /root/nonce') == "$disk" ]] || { echo "the clone has lost its disk" >&2; exit 1; }
[[ $(run "$source" 'cat /dev/shm/nonce /root/nonce') == $'moved\nmoved' ]] || { echo "the source moved back" >&2; exit 1; }
step "memory and disk are those of the snapshot, the source has moved on"

stillframe sandbox delete "$clone"
stillframe sandbox delete "$source"
stillframe snapshot delete "$snapshot"
step "all deleted"
