#!/usr/bin/env bash
# Makes what the lab boots, once, under build/lab/:
#   vmlinuz      Debian's cloud kernel
#   modules.cpio the few modules needed to find the root disk and talk to the host
#   rootfs.ext4  a minimal Debian tree with that kernel's modules and the tools of a Stillframe node
#   labrun, labinit, initramfs.img
# Everything is made beside its final name and renamed, so a killed run leaves nothing that looks finished.
# A change of what goes into the tree makes it anew. Packages come from wherever this machine's own apt takes Debian's.
# Every command that touches shared state runs under a lock, so several labs may start at once.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
lab=${STILLFRAME_LAB_DIR:-$repo/build/lab}
suite=bookworm
packages=(
  btrfs-progs busybox-static ca-certificates curl e2fsprogs ethtool ipset iproute2 iptables
  iputils-ping jq kmod libgcc-s1 netbase nftables procps socat strace tcpdump util-linux xfsprogs
)
# In load order; modprobe resolves the rest.
boot_modules=(virtio_pci virtio_blk virtio_console)

say() { printf 'lab: %s\n' "$*" >&2; }

need() {
  local missing=() pair
  for pair in debootstrap:debootstrap mkfs.ext4:e2fsprogs cpio:cpio depmod:kmod \
    qemu-system-x86_64:qemu-system-x86 go:golang; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  if ((${#missing[@]})); then
    say "missing tools; install them with: apt-get install --no-install-recommends ${missing[*]}"
    exit 1
  fi
}

# The first repository of this machine's apt that holds Debian's own $suite.
mirror() {
  # The single quotes are apt's own variables.
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Origin: Debian' |
    awk -v suite="$suite" '$2 == suite { print $1; exit }'
}

# The cloud kernel's package of this machine's apt: the version that security updates are at.
fetch_kernel() {
  local into=$1 name
  name=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
  [[ -n $name ]] || { say "apt knows no linux-image-cloud-amd64; run apt-get update"; return 1; }
  (cd "$into" && apt-get -q -o APT::Sandbox::User=root download "$name" >&2)
  dpkg-deb -x "$into"/linux-image-*.deb "$into/tree"
}

make_tree() {
  local work=$1 from include
  from=$(mirror)
  [[ -n $from ]] || { say "this machine's apt has no Debian $suite repository"; return 1; }
  include=$(IFS=,; printf '%s' "${packages[*]}")
  debootstrap --variant=minbase --include="$include" "$suite" "$work/root" "$from" >"$work/debootstrap.log" 2>&1 ||
    { tail -n 20 "$work/debootstrap.log" >&2; return 1; }
  rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/* "$work"/root/usr/share/doc/*
  mkdir -p "$work/root/lib/modules" "$work/root/lab"
  cp -a "$work"/kernel/tree/lib/modules/. "$work/root/lib/modules/"
  cp "$work"/kernel/tree/boot/vmlinuz-* "$work/root/boot/"
  printf 'stillframe-lab\n' >"$work/root/etc/hostname"
  printf '127.0.0.1 localhost stillframe-lab\n::1 localhost\n' >"$work/root/etc/hosts"
}

# The boot modules with all they depend on, and a list of them in load order.
pack_modules() {
  local work=$1 version module
  version=$(basename "$work"/kernel/tree/lib/modules/*)
  depmod -b "$work/root" "$version"
  mkdir -p "$work/early/modules"
  for module in "${boot_modules[@]}"; do
    modprobe -d "$work/root" -S "$version" --show-depends "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/order"
  while read -r module; do
    cp "$module" "$work/early/modules/"
    basename "$module"
  done <"$work/order" >"$work/early/modules/order"
  (cd "$work/early" && find . -mindepth 1 | cpio --quiet -o -H newc) >"$work/modules.cpio"
}

make_images() {
  local work=$1
  mkdir -p "$work/kernel"
  say "making a Debian $suite tree with its cloud kernel (once; a few minutes)"
  fetch_kernel "$work/kernel"
  make_tree "$work"
  pack_modules "$work"
  truncate -s 2G "$work/rootfs.ext4"
  mkfs.ext4 -q -F -O '^has_journal' -m 0 -d "$work/root" "$work/rootfs.ext4"
  cp "$work"/kernel/tree/boot/vmlinuz-* "$work/vmlinuz"
  mv "$work/vmlinuz" "$work/modules.cpio" "$work/rootfs.ext4" "$lab/"
}

images() {
  local want work
  want=$({ declare -p suite packages boot_modules; declare -f fetch_kernel make_tree pack_modules make_images; } |
    sha256sum | cut -d' ' -f1)
  if [[ -e $lab/stamp && $(<"$lab/stamp") == "$want" ]]; then
    return
  fi
  need
  [[ $(id -u) == 0 ]] || { say "making the tree needs root"; return 1; }
  rm -f "$lab/stamp"
  rm -rf "$lab"/work.*
  work=$(mktemp -d "$lab/work.XXXXXX")
  make_images "$work"
  rm -rf "$work"
  printf '%s\n' "$want" >"$lab/stamp"
}

programs() {
  (cd "$repo" && CGO_ENABLED=0 go build -trimpath -o "$lab/" ./deploy/lab/labrun ./deploy/lab/labinit)
  if [[ $lab/initramfs.img -nt $lab/labinit && $lab/initramfs.img -nt $lab/modules.cpio ]]; then
    return
  fi
  local early
  early=$(mktemp -d "$lab/work.XXXXXX")
  install -m 755 "$lab/labinit" "$early/init"
  # The kernel unpacks archives one after the other.
  { cat "$lab/modules.cpio"; (cd "$early" && echo init | cpio --quiet -o -H newc); } >"$lab/initramfs.img.tmp"
  mv "$lab/initramfs.img.tmp" "$lab/initramfs.img"
  rm -rf "$early"
}

mkdir -p "$lab"
exec 9>"$lab/lock"
flock 9
images
programs
