#!/usr/bin/env bash
# Runs the conformance suite for VMM binaries against the real Cloud Hypervisor, in the lab's emulated machine with KVM.
#
# Usage: STILLFRAME_LAB_CH=/path/to/cloud-hypervisor deploy/lab/conformance.sh [test flags, e.g. -test.run Snapshot]
#
#   STILLFRAME_LAB_CH       the Cloud Hypervisor binary; default: cloud-hypervisor from PATH
#   STILLFRAME_IMAGES       the folder with the guest's kernel and modules; default: build/images
#   STILLFRAME_LAB_TIMEOUT  longest time for everything, as Go writes durations; default: 30m
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
# shellcheck source=deploy/lab/common.sh
source "$here/common.sh"

vmm=$(find_cloud_hypervisor)
images=$(find_images "$repo")
mkdir -p "$repo/build/lab"
(cd "$repo" && CGO_ENABLED=0 go test -c -o build/lab/vmmtest ./hypervisor/vmmtest)

# The variable in the last lines is the emulated machine's.
# shellcheck disable=SC2016
# The suite's temporary files go to the scratch disk: RAM files and snapshots as they are in a node's data folder.
exec "$here/run.sh" -v -memory 2560 -timeout "${STILLFRAME_LAB_TIMEOUT:-30m}" -scratch 8192:xfs:/data -dir /data \
  -with "$vmm:/usr/local/bin/cloud-hypervisor" \
  -with "$images/vmlinuz:/images/vmlinuz" -with "$images/modules:/images/modules" \
  -with "$repo/build/lab/vmmtest:/usr/local/bin/vmmtest" \
  -env TMPDIR=/data -env STILLFRAME_IMAGES=/images \
  -env STILLFRAME_CONFORMANCE_VMMS=/usr/local/bin/cloud-hypervisor \
  -env STILLFRAME_CONFORMANCE_PATIENCE=4 \
  -- sh -c 'STILLFRAME_CONFORMANCE_CMDLINE=$STILLFRAME_LAB_GUEST_ARGS exec vmmtest -test.v -test.timeout 0 "$@"' \
  vmmtest "$@"
