#!/usr/bin/env bash
# Runs the tests of hypervisor/store that need soft-dirty bits in the lab's emulated machine, whose kernel, Debian's, has
# them: captures of memory that a process writes to, on a filesystem with reflink and on one without.
#
# Usage: deploy/lab/kernelrun-store.sh [test flags]     e.g. -test.bench Pause -test.run '^$'
#
#   STILLFRAME_LAB_FILESYSTEMS  default: "xfs ext4"
#   STILLFRAME_LAB_TIMEOUT      longest time for each filesystem, as Go writes durations; default: 20m
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
[[ $# -gt 0 ]] || set -- -test.v -test.run 'SoftDirty|Chosen|DirectIO|Equals.*/soft-dirty'

mkdir -p "$repo/build/lab"
(cd "$repo" && CGO_ENABLED=0 go test -c -o build/lab/store.test ./hypervisor/store)

# Memory enough that the machine need not reclaim any: reclaim makes soft-dirty bits useless, and the tests say so.
for filesystem in ${STILLFRAME_LAB_FILESYSTEMS:-xfs ext4}; do
  printf 'lab: store on %s\n' "$filesystem" >&2
  "$here/run.sh" -memory 3072 -timeout "${STILLFRAME_LAB_TIMEOUT:-20m}" -scratch "4096:$filesystem:/scratch" \
    -modules loop,xfs,btrfs -with "$repo/build/lab/store.test:/usr/local/bin/store.test" \
    -env STORE_TEST_DIR=/scratch -env STORE_TEST_EXPECT_SOFT_DIRTY=1 -env STORE_BENCH_FS="$filesystem" \
    -env STORE_BENCH_MIB="${STORE_BENCH_MIB:-256}" -env STORE_BENCH_METHODS="${STORE_BENCH_METHODS:-}" \
    -- /usr/local/bin/store.test "$@"
done
