#!/bin/sh
# Linux 6.18: the read-ahead of a block device is raised by itself, and never lowered by itself.
#
# - A loop device bound to a file on a disk that counts as rotating (all virtio disks do) reads 2,560
#   KiB ahead, twice the largest transfer. Bound to another file afterwards, it keeps that.
# - A value lowered by `blockdev --setra` is raised again when another limit of the queue is
#   written, even if that is lowered: max_sectors_kb = 512 takes read_ahead_kb from 128 to 1,024.
#
# Expected: 128 KiB for a file that is not on a rotating disk, whatever was bound before, and that a
# value set by the administrator stays until it is set again. The rule for rotating disks is newer
# than Linux 6.12.
#
# Needs root, loop devices, Python 3 and util-linux. It makes a loop device of its own, and removes it.
set -eu
uname -sr
directory=$(mktemp -d)
mount -t tmpfs none "$directory"
number=$(python3 - <<'PYTHON'
import fcntl
import os

LOOP_CTL_ADD = 0x4C80
control = os.open("/dev/loop-control", os.O_RDWR)
print(next(fcntl.ioctl(control, LOOP_CTL_ADD, n) for n in [max(int(name[4:]) for name in
    os.listdir("/sys/block") if name[:4] == "loop") + 1]))
PYTHON
)
device=$directory/loop queue=/sys/block/loop$number/queue

remove() {
    losetup --detach "$device" || true
    sleep 1
    python3 -c "import fcntl, os
fcntl.ioctl(os.open('/dev/loop-control', os.O_RDWR), 0x4C81, $number)"
    umount "$directory"
    rmdir "$directory"
}
trap remove EXIT
mknod "$device" b 7 "$number"
truncate -s 16M "$directory/one" "$directory/two"

changed=
expect() {
    found=$(cat "$queue/read_ahead_kb")
    echo "$1: $found KiB"
    [ "$found" -eq "$2" ] || changed=yes
}

losetup --read-only "$device" "$directory/one"
expect "a new loop device, file in memory" 128
echo 1 >"$queue/rotational"
echo 1280 >"$queue/max_sectors_kb"
expect "the same, counted as rotating, with transfers of up to 1280 KiB" 2560
echo 0 >"$queue/rotational"
expect "no longer counted as rotating" 2560
losetup --detach "$device"
losetup --read-only "$device" "$directory/two"
expect "bound to another file in memory" 2560
echo 1 >"$queue/rotational"
blockdev --setra 256 "$device"
expect "after blockdev --setra 256" 128
echo 512 >"$queue/max_sectors_kb"
expect "after max_sectors_kb was lowered to 512" 1024
[ -z "$changed" ] || { echo "the behaviour has changed" >&2; exit 1; }
