#!/bin/sh
# Linux 6.18: mounting squashfs sets the read-ahead of the block device to four of its blocks (512 KiB
# for blocks of 128 KiB, 4 MiB for blocks of 1 MiB), and unmounting leaves it so: ext4 mounted next
# from the same loop device reads 4 MiB ahead.
#
# Expected: a value of the mounted file system, which goes with it. Mounting ext4 or EROFS changes
# nothing.
#
# Needs root, a loop device, and Debian's apt-get for squashfs-tools 1:4.5.1-1, which is unpacked in a
# temporary directory and not installed.
set -eu
uname -sr
directory=$(mktemp -d) device=
remove() {
    ! mountpoint -q "$directory/mnt" || umount "$directory/mnt"
    [ -z "$device" ] || { echo "$before" >"$queue"; losetup --detach "$device" 2>/dev/null || true; }
    rm -r "$directory"
}
trap remove EXIT
cd "$directory"
apt-get download -qq -o APT::Sandbox::User=root squashfs-tools=1:4.5.1-1
dpkg-deb -x squashfs-tools_*.deb .
mkdir mnt tree
head -c 3000000 /dev/urandom >tree/file
usr/bin/mksquashfs tree small -b 128K -quiet -no-progress >/dev/null
usr/bin/mksquashfs tree large -b 1M -quiet -no-progress >/dev/null
truncate -s 8M other
mke2fs -q -t ext4 other

device=$(losetup --find --show --read-only small)
queue=/sys/block/${device#/dev/}/queue/read_ahead_kb
before=$(cat "$queue")
losetup --detach "$device"
changed=
expect() {
    echo "$1: $(cat "$queue") KiB"
    [ "$(cat "$queue")" -eq "$2" ] || changed=yes
}
use() {
    losetup --read-only "$device" "$1"
    [ -z "$3" ] || echo "$3" >"$queue"
    mount -o ro "$device" mnt
    umount mnt
    expect "$1, unmounted" "$2"
    losetup --detach "$device"
}
use other 128 128
use small 512 128
use large 4096 128
use other 4096 ""
[ -z "$changed" ] || { echo "the behaviour has changed" >&2; exit 1; }
