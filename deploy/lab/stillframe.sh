#!/usr/bin/env bash
# Runs the whole of Stillframe with the real Cloud Hypervisor in the lab's emulated machine: a node whose data folder is
# on XFS with reflink, and a script against it.
#
# Usage: STILLFRAME_LAB_CH=/path/to/cloud-hypervisor deploy/lab/stillframe.sh [script [argument…]]
#
# The script (default: deploy/lab/smoke.sh) finds LEAP0_BASE_URL and LEAP0_API_KEY set, stillframe in PATH, and the node's
# data folder in STILLFRAME_DATA; its exit code is that of this script. The node's log and what the VMMs and guests
# printed are brought back into build/lab/node.
#
#   STILLFRAME_LAB_CH       the Cloud Hypervisor binary; default: cloud-hypervisor from PATH
#   STILLFRAME_IMAGES       the images folder; default: build/images
#   STILLFRAME_LAB_MEMORY   MiB of the emulated machine; default: 4096
#   STILLFRAME_LAB_TIMEOUT  longest time for everything, as Go writes durations; default: 30m
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
# shellcheck source=deploy/lab/common.sh
source "$here/common.sh"

script=${1:-$here/smoke.sh}
shift || true
vmm=$(find_cloud_hypervisor)
images=$(find_images "$repo")
make -C "$repo" --no-print-directory build >&2

exec "$here/run.sh" -v -memory "${STILLFRAME_LAB_MEMORY:-4096}" -timeout "${STILLFRAME_LAB_TIMEOUT:-30m}" \
  -scratch 16384:xfs:/data -collect "/data/report:$repo/build/lab/node" \
  -with "$vmm:/usr/local/bin/cloud-hypervisor" \
  -with "$images:/opt/stillframe/build/images" \
  -with "$repo/build/stillframe:/opt/stillframe/build/stillframe" \
  -with "$repo/deploy/demo:/opt/stillframe/deploy/demo" \
  -with "$here/inside.sh:/opt/stillframe/inside.sh" \
  -with "$script:/opt/stillframe/script" \
  -env STILLFRAME_VMM=/usr/local/bin/cloud-hypervisor \
  -- bash /opt/stillframe/inside.sh "$@"
