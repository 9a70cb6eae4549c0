#!/usr/bin/env bash
# Three nodes on this machine, as three machines would be: each daemon in a network namespace (sfc-a, sfc-b, sfc-c) with
# its own address (10.112.0.11 to .13) and data folder. Leaves build/cluster/cluster.env with the three URLs and an API
# key. down.sh removes everything again. As root; common.sh lists the settings.
set -euo pipefail
# shellcheck source=deploy/cluster/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ -e "$dir" ]; then
  echo "there is a cluster in $dir already: make cluster-down removes it" >&2
  exit 1
fi
trap 'echo "the cluster did not come up; the end of the daemons output:" >&2; tail -n 5 "$dir"/*/daemon.log >&2 || true
  "$(dirname "${BASH_SOURCE[0]}")/down.sh"' ERR

mkdir -p "$dir"
ip link add "$bridge" type bridge
ip addr add "$network.1/24" dev "$bridge"
ip link set "$bridge" up
members=()
for node in "${nodes[@]}"; do
  ip netns add "sfc-$node"
  ip link add "sfc-$node" type veth peer name eth0 netns "sfc-$node"
  ip link set "sfc-$node" master "$bridge" up
  ip -n "sfc-$node" link set lo up
  ip -n "sfc-$node" addr add "$(address "$node")/24" dev eth0
  ip -n "sfc-$node" link set eth0 up
  members+=("$node=$(address "$node"):$node_port")
done
"$program" cluster init --dir "$dir/pki" --nodes "$(IFS=,; echo "${members[*]}")" >/dev/null

# Only the network is the namespace's own. (ip netns exec would bring a mount namespace along, in which the namespaces
# that the daemon makes for its sandboxes are lost at its next start.)
for node in "${nodes[@]}"; do
  mkdir -p "$dir/$node"
  setsid nsenter --net="/run/netns/sfc-$node" "$program" server --cluster "$dir/pki/$node" --data "$dir/$node/data" \
    --listen "$(address "$node"):$api_port" --name "$node" >>"$dir/$node/daemon.log" 2>&1 </dev/null &
  echo "$! $(started $!)" >"$dir/$node/daemon.pid"
done
for node in "${nodes[@]}"; do
  until curl -fsS -m 5 -o /dev/null "http://$(address "$node"):$api_port/readyz" 2>/dev/null; do
    alive "$dir/$node/daemon.pid" || { echo "node $node has ended" >&2; false; }
    sleep 0.2
  done
done

socket=$dir/${nodes[0]}/data/admin.sock
"$program" org create dev --socket "$socket" >/dev/null
"$program" key create --org dev --label "made by deploy/cluster/up.sh" --out "$dir/key" --socket "$socket" >/dev/null
urls=()
for node in "${nodes[@]}"; do urls+=("http://$(address "$node"):$api_port"); done
(
  umask 077
  {
    echo "LEAP0_BASE_URLS=$(IFS=,; echo "${urls[*]}")"
    echo "LEAP0_BASE_URL=${urls[0]}"
    echo "LEAP0_API_KEY=$(cat "$dir/key")"
  } >"$dir/cluster.env"
)
rm "$dir/key"
# The key may be a moment on its way to the other nodes.
for node in "${nodes[@]}"; do
  until "$program" cluster status --env-file "$dir/cluster.env" --url "http://$(address "$node"):$api_port" -q \
    >/dev/null 2>&1; do sleep 0.1; done
done
"$program" cluster status --env-file "$dir/cluster.env" 2>/dev/null
echo
echo "URLs and a key are in $dir/cluster.env; make cluster-down ends it all."
