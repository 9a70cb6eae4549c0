#!/usr/bin/env bash
# shellcheck disable=SC2034 # what is set here is used where this is sourced
# What up.sh and down.sh agree on: three nodes on this machine, each with a network namespace, an address on one bridge
# and a folder of its own. Sourced, not run.
#
#   CLUSTER_DIR  where the cluster's files are (default build/cluster)
#   STILLFRAME   the program (default build/stillframe)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dir=${CLUSTER_DIR:-$root/build/cluster}
program=${STILLFRAME:-$root/build/stillframe}
nodes=(a b c)
bridge=sfc-br0
network=10.112.0
api_port=7070
node_port=7071

address() { # NODE: its address; a has .11
  local i
  for i in "${!nodes[@]}"; do
    if [ "${nodes[$i]}" = "$1" ]; then echo "$network.$((11 + i))"; fi
  done
}

# started PID: when the process began, in clock ticks since boot; nothing once it is gone. With the pid it names one
# process for good.
started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '{ print $20 }' || true; }

# alive FILE: whether the daemon whose pid and start are in the file still runs.
alive() {
  local pid began
  [ -s "$1" ] && read -r pid began <"$1" && [ "$(started "$pid")" = "$began" ]
}
