#!/bin/bash
# Makes what every sandbox boots from: kernel, initramfs, an empty overlay disk, and the root images of the templates.
#
#   deploy/images/build.sh OUTDIR
#
# Run as root on Debian (amd64) with Go in PATH. Each part is made under another name and renamed when it is whole; a
# part that is there and whose inputs have not changed is left alone, so the script can be stopped and run again at any
# time. Parts are not renewed because Debian has newer packages: a snapshot can only be restored on the image it was
# taken on. Remove OUTDIR/stamps/PART to renew a part.
set -euo pipefail
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
[ $# -eq 1 ] || { echo "usage: $0 OUTDIR" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "$0: must run as root" >&2; exit 1; }
[ "$(dpkg --print-architecture)" = amd64 ] || { echo "$0: amd64 only" >&2; exit 1; }
command -v go >/dev/null || { echo "$0: Go is not in PATH" >&2; exit 1; }

mkdir -p "$1"
out=$(cd "$1" && pwd)
stamps=$out/stamps
mkdir -p "$stamps" "$out/templates"
exec 9>"$out/lock"
flock 9 # two builds at once take turns

cleanup() {
	# debootstrap mounts proc and sys below its target; deepest first.
	awk -v w="$out/work." 'index($2, w) == 1 { print $2 }' /proc/mounts | sort -r | while read -r m; do umount -l "$m"; done
	rm -rf --one-file-system "$out"/work.*
}
cleanup # what a build that was killed has left
trap cleanup EXIT
work=$(mktemp -d "$out/work.XXXXXX")
trap 'exit 130' INT TERM

# Files dated after this get this date, so that an image depends less on when it was made.
export SOURCE_DATE_EPOCH=1735689600 E2FSPROGS_FAKE_TIME=1735689600
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

say() { printf '[images] %s\n' "$*"; }

# hash_of FILE… TEXT via stdin: one digest of all inputs of a part.
hash_of() { { cat -- "$@"; cat; } | sha256sum | cut -d' ' -f1; }

# part NAME HASH FUNCTION OUTPUT…: runs the function unless its stamp has this hash and the outputs are there.
part() {
	local name=$1 hash=$2 make=$3 o fresh=yes started=$SECONDS
	shift 3
	for o in "$@"; do [ -e "$out/$o" ] || fresh=no; done
	if [ "$fresh" = yes ] && [ "$(cat "$stamps/$name" 2>/dev/null)" = "$hash" ]; then
		say "$name: up to date"
		return
	fi
	say "$name: making (log: $out/$name.log)"
	rm -f "$stamps/$name"
	# Called from no condition, so that errexit holds inside; the trap says where to look.
	trap 'say "failed; the end of $out/'"$name"'.log:"; tail -n 15 "$out/'"$name"'.log" >&2; cleanup' EXIT
	"$make" >"$out/$name.log" 2>&1
	trap cleanup EXIT
	sync -f "$out"
	printf '%s\n' "$hash" >"$stamps/$name.new"
	mv "$stamps/$name.new" "$stamps/$name"
	say "$name: done in $((SECONDS - started)) s"
}

publish() { # publish FILE NAME: a finished file gets its name
	mv -f "$1" "$out/$2"
}

apt_updated=no
apt_update() {
	[ "$apt_updated" = yes ] || apt-get update -q
	apt_updated=yes
}

need_packages() {
	local p missing=()
	for p in "$@"; do
		[ "$(dpkg-query -W -f '${Status}' "$p" 2>/dev/null)" = 'install ok installed' ] || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing ${missing[*]}"
	apt_update >"$out/packages.log" 2>&1
	apt-get install -q -y --no-install-recommends "${missing[@]}" >>"$out/packages.log" 2>&1
}

# unpack PACKAGE DIR: fetches a package and unpacks it without installing it.
unpack() {
	local d
	apt_update
	d=$(mktemp -d "$work/deb.XXXXXX")
	(cd "$d" && apt-get -q -o APT::Sandbox::User=root download "$1")
	dpkg-deb -x "$d"/*.deb "$2"
	rm -r "$d"
}

make_kernel() {
	local package boot payload_at payload_size setup
	apt_update
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n1)
	[ -n "$package" ] || { echo "no kernel behind linux-image-cloud-amd64"; return 1; }
	mkdir "$work/kernel"
	unpack "$package" "$work/kernel"
	boot=$(echo "$work"/kernel/boot/vmlinuz-*)
	# The payload of a bzImage lies behind the real-mode code; Documentation/arch/x86/boot.rst of the kernel has the
	# fields. Its last four bytes are its unpacked size, which the LZ4 tool does not expect.
	setup=$(od -An -tu1 -j $((0x1f1)) -N1 "$boot")
	payload_at=$(($(od -An -tu4 -j $((0x248)) -N4 "$boot") + (setup + 1) * 512))
	payload_size=$(($(od -An -tu4 -j $((0x24c)) -N4 "$boot") - 4))
	tail -c +$((payload_at + 1)) "$boot" | head -c "$payload_size" >"$work/payload" || true # head closes early
	[ "$(stat -c %s "$work/payload")" -eq "$payload_size" ]
	lz4 -q -d -f "$work/payload" "$work/vmlinux"
	[ "$(head -c4 "$work/vmlinux")" = $'\x7fELF' ]
	# A usr-merged package has its modules below usr/lib.
	mkdir "$work/modules"
	find "$work/kernel" -path '*/lib/modules/*' -prune -exec mv -t "$work/modules" {} +
	find "$work/modules" -name '*.ko.xz' -exec unxz {} +
	find "$work/modules" -name '*.ko.zst' -exec zstd -q -d --rm {} +
	echo "$package" >"$work/kernel-package"
	rm -rf "$out/modules"
	publish "$work/modules" modules
	publish "$work/vmlinux" vmlinux
	publish "$work/kernel-package" kernel-package
	publish "$boot" vmlinuz
}

guest_modules=(virtio_pci virtio_blk virtio_net virtio_rng ext4 overlay)

make_initramfs() {
	(cd "$repo" && go run ./deploy/images/mkinitramfs -init "$work/stillframe-guest" \
		-modules "$(echo "$out"/modules/*)" -out "$work/initramfs.img" "${guest_modules[@]}")
	publish "$work/initramfs.img" initramfs.img
}

# Every block of the empty overlay that the guest writes ends up in snapshots: a small journal, no blocks to grow the
# file system by, and inode tables that count as zeroed already, because a new sparse file is.
overlay_options=(-t ext4 -q -F -b 4096 -m 0 -J size=16 -O '^resize_inode' -L overlay
	-U 5f5f5f5f-0000-4000-8000-000000000001
	-E 'lazy_itable_init=1,assume_storage_prezeroed=1,hash_seed=5f5f5f5f-0000-4000-8000-000000000002')
overlay_mib=10240

make_overlay() {
	truncate -s "${overlay_mib}M" "$work/overlay.ext4"
	mke2fs "${overlay_options[@]}" "$work/overlay.ext4"
	publish "$work/overlay.ext4" overlay.ext4
}

# same_times IMAGE: gives all files one set of times. mke2fs copies the time of each file's last change of status, which
# no tool can set on the original; with it, the same packages would give another image, and another digest, every day.
same_times() {
	local count free i field
	count=$(dumpe2fs -h "$1" 2>/dev/null | sed -n 's/^Inode count: *//p')
	free=$(dumpe2fs -h "$1" 2>/dev/null | sed -n 's/^Free inodes: *//p')
	{
		echo 'rmdir lost+found' # its inode is 11, and nothing repairs a file system that is never written to
		for i in 2 $(seq 12 $((count - free))); do
			for field in atime ctime crtime; do echo "sif <$i> $field @$SOURCE_DATE_EPOCH"; done
			for field in atime_extra ctime_extra crtime_extra mtime_extra; do echo "sif <$i> $field 0"; done
		done
		echo "sif <2> mtime @$SOURCE_DATE_EPOCH"
	} >"$work/times"
	debugfs -w -f "$work/times" "$1" >"$work/times.log" 2>&1
	if grep -v -e '^debugfs' -e '^$' "$work/times.log"; then return 1; fi # it goes on after an error
}

# finish_template ROOT FILE NAME: makes the read-only image of a root folder, and its description.
finish_template() {
	local root=$1 file=$2 name=$3 size inodes digest
	install -d -m 755 "$root"/{dev,proc,sys,run,workspace}
	install -d -m 755 -o 1000 -g 1000 "$root/home/user" "$root/workspace"
	install -d -m 1777 "$root/tmp"
	: >"$root/etc/machine-id"
	printf 'nameserver 10.111.0.1\n' >"$root/etc/resolv.conf"
	find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	size=$(du -s -k --apparent-size "$root" | cut -f1)
	inodes=$(find "$root" | wc -l)
	# Never written to: no journal, no reserve; room for the blocks' rounding and the tables.
	truncate -s "$((size * 110 / 100 + inodes * 4 + 4096))K" "$work/$file.ext4"
	mke2fs -t ext4 -q -F -b 4096 -m 0 -N $((inodes + 64)) -O '^has_journal,^resize_inode' -L "${file:0:16}" \
		-U "$(uuidgen --sha1 --namespace @dns --name "$name")" \
		-E "hash_seed=$(uuidgen --sha1 --namespace @url --name "$name")" -d "$root" "$work/$file.ext4"
	same_times "$work/$file.ext4"
	e2fsck -f -n "$work/$file.ext4"
	digest=$(sha256sum "$work/$file.ext4" | cut -d' ' -f1)
	printf '{"name":"%s","image":"%s.ext4","digest":"sha256:%s"}\n' "$name" "$file" "$digest" >"$work/$file.json"
	# The description last: without it nobody looks at the image.
	rm -f "$out/templates/$file.json"
	publish "$work/$file.ext4" "templates/$file.ext4"
	publish "$work/$file.json" "templates/$file.json"
	rm -rf --one-file-system "$root"
}

# accounts ROOT SHELL: adds the user that both templates have.
accounts() {
	local etc=$1/etc
	grep -q '^user:' "$etc/passwd" || echo "user:x:1000:1000::/home/user:$2" >>"$etc/passwd"
	grep -q '^user:' "$etc/group" || echo 'user:x:1000:' >>"$etc/group"
	if [ -e "$etc/shadow" ] && ! grep -q '^user:' "$etc/shadow"; then
		echo 'user:!:20000:0:99999:7:::' >>"$etc/shadow"
	fi
}

make_busybox() {
	local root=$work/busybox applet
	mkdir "$work/busybox-deb"
	unpack busybox-static "$work/busybox-deb"
	mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,etc,root,var/tmp,var/log}
	install -m 755 "$work"/busybox-deb/*bin/busybox "$root/bin/busybox" 2>/dev/null ||
		install -m 755 "$work/busybox-deb/usr/bin/busybox" "$root/bin/busybox"
	"$root/bin/busybox" --list-full | while read -r applet; do
		[ "$applet" = bin/busybox ] || [ "$applet" = linuxrc ] || [ -e "$root/$applet" ] || ln -s /bin/busybox "$root/$applet"
	done
	echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
	printf 'root:x:0:\ntty:x:5:\n' >"$root/etc/group"
	chmod 700 "$root/root"
	chmod 1777 "$root/var/tmp"
	accounts "$root" /bin/sh
	finish_template "$root" system-busybox system/busybox
}

debian_suite=bookworm
# What programs in a sandbox are most often missing: TLS roots, a downloader, version control, an interpreter, ps.
debian_packages=ca-certificates,curl,git,python3,procps

# debian_mirror: where this machine gets Debian itself from.
debian_mirror() {
	# shellcheck disable=SC2016 # apt's placeholders, not the shell's
	apt-get indextargets --format '$(LABEL)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' |
		awk -F'|' '$1 == "Debian" && $2 == "main" { print $3; exit }'
}

make_debian() {
	local root=$work/debian mirror
	apt_update
	mirror=$(debian_mirror)
	[ -n "$mirror" ] || { echo "no Debian mirror in this machine's apt sources"; return 1; }
	debootstrap --variant=minbase --include="$debian_packages" "$debian_suite" "$root" "$mirror"
	accounts "$root" /bin/bash
	# Package lists and caches are out of date when they are needed, manuals are never read; licences stay.
	rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/ldconfig/* "$root"/var/log/*
	rm -rf "$root"/usr/share/{man,info,locale}/* "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old
	find "$root/usr/share/doc" -type f ! -name copyright -delete
	find "$root" -xdev -name __pycache__ -prune -exec rm -r {} +
	finish_template "$root" debian-bookworm system/debian:bookworm
}

say "into $out"
# debootstrap's progress is in its log; it takes a few minutes.
need_packages debootstrap debian-archive-keyring e2fsprogs lz4 xz-utils zstd uuid-runtime
(cd "$repo" && CGO_ENABLED=0 GOFLAGS='' go build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' \
	-o "$work/stillframe-guest" ./cmd/stillframe-guest)

functions() { declare -f "$@"; }
part kernel "$(functions make_kernel unpack | hash_of)" make_kernel vmlinuz vmlinux modules
part initramfs "$({ functions make_initramfs; echo "${guest_modules[@]}"; cat "$out/kernel-package"; } |
	hash_of "$work/stillframe-guest" "$here"/mkinitramfs/*.go)" make_initramfs initramfs.img
part overlay "$(echo "${overlay_options[@]}" $overlay_mib | hash_of)" make_overlay overlay.ext4
part busybox "$(functions make_busybox finish_template same_times accounts | hash_of)" make_busybox \
	templates/system-busybox.ext4 templates/system-busybox.json
part debian "$({ functions make_debian finish_template same_times accounts; echo $debian_suite $debian_packages; } | hash_of)" \
	make_debian templates/debian-bookworm.ext4 templates/debian-bookworm.json
say "complete"
