#!/bin/bash
# Installs what the lab, the demo and the tests need, and nothing that is there
# already. No service is started: a policy-rc.d forbids it during the install
# and goes away with it. The kernel for virtual machines is unpacked into the
# cache and not installed. Safe to run again at any time, and fast then.
#
#   deps.sh [all|demo|lab] [--packages-only]    demo: without what only tests need;
#                                               lab: with what only `make lab` needs
set -euo pipefail

# What each is for is written in integration/README.md.
packages=(
	qemu-system-x86 qemu-utils qemu-block-extra busybox-static
	qemu-guest-agent postgresql lvm2 e2fsprogs
)
for_tests=(
	cinder-api cinder-scheduler cinder-volume
	gcc libc6-dev libiscsi-bin tgt nbdkit libnbd-bin fdisk gdisk cpio
	dosfstools mtools ntfs-3g
	xfsprogs btrfs-progs fuse3 libvshadow-utils python3-libvshadow thin-provisioning-tools sg3-utils open-iscsi multipath-tools fio
)
for_lab=(ceph-mon ceph-mgr ceph-osd ceph-common rbd-nbd tgt-rbd python3-keystone)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/cleave
policy=/usr/sbin/policy-rc.d
marker='# made by deps.sh of Cleave for the time of an install'
need_go=1.25
packages_only=
what=all
for arg; do
	case $arg in
	all | demo | lab) what=$arg ;;
	--packages-only) packages_only=1 ;;
	*)
		echo "usage: deps.sh [all|demo|lab] [--packages-only]" >&2
		exit 2
		;;
	esac
done
[[ $what == demo ]] || packages+=("${for_tests[@]}")
[[ $what != lab ]] || packages+=("${for_lab[@]}")

say() { printf 'deps: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}
# timed WHAT CMD…: runs a command, its output in a log that is shown if it fails.
timed() {
	local what=$1 log began
	shift
	log=$(mktemp)
	began=$(date +%s%N)
	if ! "$@" >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		rm -f "$log"
		die "$what failed"
	fi
	rm -f "$log"
	say "$(printf '%s: %d.%d s' "$what" $((($(date +%s%N) - began) / 1000000000)) $((($(date +%s%N) - began) / 100000000 % 10)))"
}

check_go() {
	local have
	command -v go >/dev/null || die "Go is not installed; Cleave needs Go $need_go or later: https://go.dev/doc/install"
	have=$(GOTOOLCHAIN=local go env GOVERSION)
	have=${have#go}
	[[ $(printf '%s\n' "$need_go" "$have" | sort -V | head -n1) == "$need_go" ]] ||
		die "this is Go $have; Cleave needs Go $need_go or later (Debian's own is too old): https://go.dev/doc/install"
}

missing() {
	local p
	declare -A have
	while read -r state p; do
		[[ $state == ii ]] && have[$p]=1
	done < <(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' "${packages[@]}" 2>/dev/null || true)
	for p in "${packages[@]}"; do [[ ${have[$p]:-} ]] || echo "$p"; done
}

root() {
	if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

lists_missing() { ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; }

# install_packages PKG…: an existing policy-rc.d is the administrator's word and
# stays as it is; one of our own goes away however this ends.
install_packages() {
	# One of ours that a kill -9 left behind is not the administrator's.
	if grep -qsxF "$marker" "$policy" || [[ ! -e $policy && ! -L $policy ]]; then
		trap 'root rm -f "$policy"' EXIT
		trap 'exit 130' INT
		trap 'exit 143' TERM HUP
		printf '#!/bin/sh\n%s\nexit 101\n' "$marker" | root tee "$policy" >/dev/null
		root chmod 755 "$policy"
	elif ! grep -qw 101 "$policy"; then
		say "$policy exists and may let packages start their services; it is left as it is"
	fi
	timed "installing $*" root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -q --no-install-recommends -o Dpkg::Use-Pty=0 "$@"
}

kernel_package() {
	apt-cache depends --no-recommends --no-suggests linux-image-amd64 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n1
}

have_kernel() {
	compgen -G "$cache/kernel-*/boot/vmlinuz-*" >/dev/null ||
		compgen -G "/var/cache/cleave/kernel-*/boot/vmlinuz-*" >/dev/null
}

# fetch_kernel puts the current kernel package, without what no virtual machine
# of ours can use, into the cache; it appears there as a whole or not at all.
fetch_kernel() {
	have_kernel && return
	local tmp name
	name=$(kernel_package)
	if [[ -z $name ]]; then
		timed "apt-get update" update_lists
		name=$(kernel_package)
	fi
	[[ $name ]] || die "no package linux-image-amd64 in apt's lists"
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/.new-XXXXXX")
	if ! (cd "$tmp" && timed "downloading $name" apt-get download -q "$name"); then
		# Old lists name packages that the mirror no longer has.
		timed "apt-get update" update_lists
		(cd "$tmp" && timed "downloading $name" apt-get download -q "$name") || die "cannot download $name"
	fi
	timed "unpacking $name" unpack_kernel "$tmp"
	mv -T "$tmp/root" "$cache/kernel-${name#linux-image-}" 2>/dev/null || true # someone else was faster
	rm -rf "$tmp"
}

unpack_kernel() {
	mkdir "$1/root"
	dpkg-deb --fsys-tarfile "$1"/*.deb | tar -C "$1/root" -x --no-same-owner --exclude='./lib/modules/*/kernel/drivers/gpu' \
		--exclude='./lib/modules/*/kernel/drivers/media' --exclude='./lib/modules/*/kernel/sound' \
		--exclude='./lib/modules/*/kernel/drivers/net/*/*' --exclude='./usr'
}

can_root() { ((EUID == 0)) || sudo -n true 2>/dev/null; }

update_lists() { root apt-get update -q; }

began=$(date +%s%N)
command -v apt-get >/dev/null ||
	die "this is not Debian or a relative of it; install by hand what integration/README.md lists"
[[ $packages_only ]] || check_go
mapfile -t want < <(missing)
if ((${#want[@]})) || { lists_missing && ! have_kernel; }; then
	can_root || die "not root, and packages are missing: ${want[*]:-apt lists}
deps: run this once, then again what you ran:
  sudo $(realpath "$0") $what --packages-only"
	if lists_missing; then timed "apt-get update" update_lists; fi
fi
if ((${#want[@]})); then install_packages "${want[@]}"; fi
[[ $packages_only ]] || fetch_kernel
say "everything is there ($((($(date +%s%N) - began) / 1000000)) ms)"
