#!/usr/bin/env bash
# Runs a command in the lab's emulated machine; makes the machine's parts first if they are not there.
# Usage: deploy/lab/run.sh [flags] -- command [argument…]      (deploy/lab/run.sh -help lists the flags)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lab=${STILLFRAME_LAB_DIR:-$(cd "$here/../.." && pwd)/build/lab}

"$here/prepare.sh"
exec "$lab/labrun" -lab "$lab" "$@"
