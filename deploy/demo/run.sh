#!/usr/bin/env bash
# The main job of Stillframe on this machine, from nothing: a node starts, a sandbox is created, snapshotted while it
# runs and restored three times at once, its network policy replaced, and everything is deleted again. Every line that begins with "$" can be copied.
# Exits non-zero when anything did not hold. make demo builds what this needs and calls it.
#
#   DEMO_DATA    the node's data folder (default: a fresh temporary folder, removed at the end)
#   DEMO_LISTEN  the API's address (default 127.0.0.1:7070)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PATH="$root/build:$PATH"
data=${DEMO_DATA:-$(mktemp -d /tmp/stillframe-demo.XXXXXX)}
listen=${DEMO_LISTEN:-127.0.0.1:7070}
node=
far=sfdemo-far # the namespace, and the link to it
far_server=
began=$(date +%s%N)
rows=()
held=0
broken=0

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
note() { printf '  %s\n' "$*"; }
now() { date +%s%N; }
row() { rows+=("$1|$2|$3"); }
took() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f s", (b - a) / 1e9 }'; }

# ms: nanoseconds on standard input, as milliseconds.
ms() { awk '{ printf "%.1f ms", $1 / 1e6 }'; }

# check DESCRIPTION COMMAND…: one thing that must hold.
check() {
  local what=$1
  shift
  if "$@"; then
    held=$((held + 1))
    printf '  \033[32mheld\033[0m    %s\n' "$what"
  else
    broken=$((broken + 1))
    printf '  \033[31mBROKEN\033[0m  %s\n' "$what"
  fi
}

# api METHOD PATH [BODY]: prints the curl line as a person would type it, runs it, leaves $status and $answer.
status=
answer=
api() {
  local method=$1 path=$2 body=${3-}
  local -a line=(curl -sS -X "$method" "$LEAP0_BASE_URL$path" -H "authorization: Bearer $LEAP0_API_KEY")
  # shellcheck disable=SC2016 # the variables are meant to be read by whoever copies the line
  printf '$ curl -sS -X %s "$LEAP0_BASE_URL%s" -H "authorization: Bearer $LEAP0_API_KEY"' "$method" "$path"
  if [ -n "$body" ]; then
    line+=(-H 'content-type: application/json' -d "$body")
    printf " -H 'content-type: application/json' -d '%s'" "$body"
  fi
  printf '\n'
  answer=$("${line[@]}" -w '\n%{http_code}')
  status=${answer##*$'\n'}
  answer=${answer%$'\n'*}
  printf '  %s %s\n' "$status" "$(printf '%s' "$answer" | cut -c1-220)"
}

# cli ARGS…: prints and runs a line of the command line.
cli() {
  printf '$ stillframe %s\n' "$*" >&2
  stillframe "$@"
}

# quiet_exec SANDBOX COMMAND: a shell command in a sandbox, its output only.
quiet_exec() {
  jq -n --arg c "$2" '{command: $c}' |
    curl -sS -X POST "$LEAP0_BASE_URL/v1/sandbox/$1/process/execute" \
      -H "authorization: Bearer $LEAP0_API_KEY" -H 'content-type: application/json' -d @- | jq -r .stdout
}

# shellcheck disable=SC2317 # called by the trap
cleanup() {
  local code=$?
  if [ -n "$node" ] && kill -0 "$node" 2>/dev/null; then
    kill "$node" 2>/dev/null || true
    wait "$node" 2>/dev/null || true
  fi
  [ -z "$far_server" ] || kill "$far_server" 2>/dev/null || true
  ip netns del "$far" 2>/dev/null || true
  ip link del "$far" 2>/dev/null || true
  if [ "$code" -ne 0 ] && [ -f "$data/node.log" ]; then
    printf '\nThe node'"'"'s last words (%s):\n' "$data/node.log" >&2
    tail -n 20 "$data/node.log" >&2
  elif [ -z "${DEMO_DATA-}" ]; then
    rm -rf "$data"
  fi
  exit "$code"
}
trap cleanup EXIT

say "1. A node starts (one process, its own data folder $data)"
printf '$ stillframe dev --data %s --listen %s &\n' "$data" "$listen"
t0=$(now)
stillframe dev --data "$data" --listen "$listen" >"$data/node.log" 2>&1 &
node=$!
for _ in $(seq 600); do
  [ -f "$data/dev.env" ] && break
  kill -0 "$node" 2>/dev/null || { echo "the node ended at once" >&2; exit 1; }
  sleep 0.1
done
[ -f "$data/dev.env" ] || { echo "the node was not ready in 60 s" >&2; exit 1; }
t1=$(now)
row "node ready" "$(took "$t0" "$t1")" ""
set -a
# shellcheck disable=SC1091 # written by the node
. "$data/dev.env"
set +a
printf '$ set -a; . %s/dev.env; set +a\n' "$data"
cli node status | sed 's/^/  /'
# Those of sandboxes: a node keeps a few closed ones ready.
namespaces() { ip netns list | grep -c '^sf-' || true; }
namespaces_before=$(namespaces)

say "2. A sandbox: a real VM from system/debian:bookworm"
t0=$(now)
api POST /v1/sandbox '{"template_name":"system/debian:bookworm","vcpu":1,"memory":1024,"timeout":1800}'
t1=$(now)
check "201, state running" test "$status $(jq -r .state <<<"$answer")" = "201 running"
sandbox=$(jq -r .id <<<"$answer")
row "create until running" "$(took "$t0" "$t1")" "1 vCPU, 1024 MiB"
cli exec "$sandbox" -- uname -a | sed 's/^/  /'

say "3. A nonce in memory only, another on disk, a counter, and a watch for how long the guest stands still"
memory_nonce=$(quiet_exec "$sandbox" 'head -c 16 /dev/urandom | od -An -tx1 | tr -d " \n" | tee /dev/shm/nonce')
disk_nonce=$(quiet_exec "$sandbox" 'head -c 16 /dev/urandom | od -An -tx1 | tr -d " \n" | tee /root/nonce; sync')
quiet_exec "$sandbox" 'stillframe-guest counter --every 20ms --file /dev/shm/counter >/dev/null 2>&1 &' >/dev/null
note "memory nonce $memory_nonce (tmpfs /dev/shm)   disk nonce $disk_nonce (/root)"
sleep 1
counter_before=$(quiet_exec "$sandbox" 'cut -d" " -f1 /dev/shm/counter')
note "counter at $counter_before"
# Nothing else is run in the sandbox until the watch ends: it would see that, too.
quiet_exec "$sandbox" 'stillframe-guest stillness --for 6s >/dev/shm/stillness 2>&1 &' >/dev/null
sleep 2

say "4. A snapshot while it runs"
t0=$(now)
api POST "/v1/sandbox/$sandbox/snapshot/create" '{"name":"warm"}'
t1=$(now)
check "201, named warm" test "$status $(jq -r .name <<<"$answer")" = "201 warm"
snapshot=$(jq -r .id <<<"$answer")
row "snapshot, the call" "$(took "$t0" "$t1")" "$(grep -o 'clone_method=[a-z]*' "$data/node.log" | head -1)"
sleep 4
stillness=$(quiet_exec "$sandbox" 'while [ ! -s /dev/shm/stillness ]; do sleep 0.2; done; cat /dev/shm/stillness')
stood=$(jq -r .largest_gap_ns <<<"$stillness" | ms)
usual=$(jq -r .median_gap_ns <<<"$stillness" | ms)
note "measured in the guest: stood still for $stood (usual gap between two looks at the host's clock: $usual)"
row "guest stood still" "$stood" "measured in the guest, usual gap $usual"
counter_after=$(quiet_exec "$sandbox" 'cut -d" " -f1 /dev/shm/counter')
check "the source moved on ($counter_before → $counter_after)" test "$counter_after" -gt "$counter_before"

say "5. The same name again"
api POST "/v1/sandbox/$sandbox/snapshot/create" '{"name":"warm"}'
check "409" test "$status" = 409
quiet_exec "$sandbox" 'echo moved-on > /dev/shm/nonce; echo moved-on > /root/nonce' >/dev/null

say "6. Restored three times at once"
# shellcheck disable=SC2016
printf '$ for i in 1 2 3; do curl -sS -X POST "$LEAP0_BASE_URL/v1/snapshot/restore" -H "authorization: Bearer $LEAP0_API_KEY" -H '\''content-type: application/json'\'' -d '\''{"snapshot_name":"warm","timeout":1800}'\'' & done; wait\n'
t0=$(now)
for i in 1 2 3; do
  curl -sS -X POST "$LEAP0_BASE_URL/v1/snapshot/restore" -H "authorization: Bearer $LEAP0_API_KEY" \
    -H 'content-type: application/json' -d '{"snapshot_name":"warm","timeout":1800}' >"$data/restore.$i" &
  pids[i]=$!
done
for i in 1 2 3; do wait "${pids[i]}"; done
t1=$(now)
row "three restores at once" "$(took "$t0" "$t1")" "until all three are running"
clones=()
for i in 1 2 3; do
  note "$(cut -c1-200 "$data/restore.$i")"
  clones+=("$(jq -r .id "$data/restore.$i")")
  check "clone $i is running" test "$(jq -r .state "$data/restore.$i")" = running
done
check "three new ids" test "$(printf '%s\n' "$sandbox" "${clones[@]}" | sort -u | wc -l)" = 4
randoms=()
for c in "${clones[@]}"; do
  check "memory nonce in $c" test "$(quiet_exec "$c" 'cat /dev/shm/nonce')" = "$memory_nonce"
  check "disk nonce in $c" test "$(quiet_exec "$c" 'cat /root/nonce')" = "$disk_nonce"
  first=$(quiet_exec "$c" 'cut -d" " -f1 /dev/shm/counter')
  sleep 0.5
  second=$(quiet_exec "$c" 'cut -d" " -f1 /dev/shm/counter')
  check "its counter went on from the instant ($counter_before ≤ $first < $second)" \
    test "$counter_before" -le "$first" -a "$first" -lt "$second"
  randoms+=("$(quiet_exec "$c" 'head -c 16 /dev/urandom | od -An -tx1 | tr -d " \n"; cat /etc/machine-id')")
done
check "no two clones share random bytes or machine id" \
  test "$(printf '%s\n' "${randoms[@]}" | sort -u | wc -l)" = 3
check "the source has moved on" test "$(quiet_exec "$sandbox" 'cat /dev/shm/nonce /root/nonce | sort -u')" = moved-on
cli sandbox list | sed 's/^/  /'
cli snapshot list | sed 's/^/  /'

say "7. What a sandbox reaches: a far side in a network namespace of its own, and two policies"
ip netns add "$far"
ip link add "$far" type veth peer name eth0 netns "$far"
ip addr add 203.0.113.1/24 dev "$far"
ip link set "$far" up
ip -n "$far" link set lo up
ip -n "$far" addr add 203.0.113.10/24 dev eth0
ip -n "$far" addr add 203.0.113.11/24 dev eth0
ip -n "$far" link set eth0 up
mkdir "$data/far"
echo "hello from the far side" >"$data/far/hello"
ip netns exec "$far" busybox httpd -f -p 80 -h "$data/far" >"$data/far.log" 2>&1 &
far_server=$!
reaches() { quiet_exec "$1" "curl -sSf --retry 5 --retry-connrefused --max-time 20 http://$2/hello 2>&1"; }
check "without a policy a sandbox reaches it" test "$(reaches "${clones[0]}" 203.0.113.10)" = "hello from the far side"
api PUT "/v1/sandbox/${clones[1]}/network-policy" '{"mode":"custom","allow_cidrs":["203.0.113.10/32"]}'
check "200" test "$status" = 200
check "one address is allowed" test "$(reaches "${clones[1]}" 203.0.113.10)" = "hello from the far side"
refused=$(reaches "${clones[1]}" 203.0.113.11)
note "another: $refused"
check "another is refused, at once" grep -qE 'error: 403|reset|refused' <<<"$refused"
api PUT "/v1/sandbox/${clones[0]}/network-policy" '{"mode":"deny-all"}'
check "200" test "$status" = 200
refused=$(reaches "${clones[0]}" 203.0.113.10)
note "after deny-all: $refused"
check "nothing is reached any more" test "${refused#*hello from}" = "$refused"
kill "$far_server"
wait "$far_server" 2>/dev/null || true
far_server=
ip netns del "$far"
ip link del "$far" 2>/dev/null || true

say "8. Everything is deleted"
t0=$(now)
for s in "$sandbox" "${clones[@]}"; do
  api DELETE "/v1/sandbox/$s"
  check "204" test "$status" = 204
done
cli snapshot delete "$snapshot"
t1=$(now)
row "delete all" "$(took "$t0" "$t1")" "4 sandboxes, 1 snapshot"
leftover_processes() { pgrep -f -- "$data/sandboxes" || true; }
check "no VM process left" test -z "$(leftover_processes)"
check "no namespace left" test "$(namespaces)" = "$namespaces_before"
check "no mount left" test -z "$(awk -v d="$data" 'index($5, d) == 1' /proc/self/mountinfo)"
check "no tap left" test -z "$(ip -o link show type tun 2>/dev/null | grep -F sf- || true)"
check "no sandbox or snapshot file left" \
  test -z "$(find "$data/sandboxes" "$data/snapshots" -mindepth 1 | head -n 1)"
kill "$node"
wait "$node" 2>/dev/null || true
node=

say "Times (wall clock, this machine)"
printf '  %-26s %12s   %s\n' step time ""
for r in "${rows[@]}"; do
  IFS='|' read -r what time remark <<<"$r"
  printf '  %-26s %12s   %s\n' "$what" "$time" "$remark"
done
printf '  %-26s %12s\n' "the whole demo" "$(took "$began" "$(now)")"
printf '\n%d checks held, %d broken\n' "$held" "$broken"
[ "$broken" -eq 0 ]
