#!/bin/sh
# Linux 6.18, ext4 and xfs: to read space that was allocated but never written makes it data for
# lseek(2). SEEK_DATA finds nothing in a new file of fallocate(1); after its first MiB was read, that
# MiB and what was read ahead are data, until the page cache is dropped. In tmpfs nothing changes.
#
# Expected: that reading changes nothing that is seen of a file. So a program that copies by
# SEEK_DATA copies zeros of a file that another one has read, and fewer of them a while later.
#
# Needs root, loop devices, util-linux, Python 3, and Debian's apt-get for xfsprogs 6.1.0-1, which is
# unpacked in a temporary directory and not installed.
set -eu
uname -sr
directory=$(mktemp -d)
remove() {
    for each in ext4 xfs tmpfs; do
        ! mountpoint -q "$directory/$each" || umount "$directory/$each"
    done
    rm -r "$directory"
}
trap remove EXIT
cd "$directory"
apt-get download -qq -o APT::Sandbox::User=root xfsprogs=6.1.0-1 libinih1 liburcu8
for package in *.deb; do dpkg-deb -x "$package" .; done
mkdir ext4 xfs tmpfs
truncate -s 320M of-ext4 of-xfs
mke2fs -q -t ext4 of-ext4
LD_LIBRARY_PATH=$(echo usr/lib/*-linux-gnu) sbin/mkfs.xfs -q of-xfs
mount -o loop of-ext4 ext4
mount -o loop of-xfs xfs
mount -t tmpfs none tmpfs

data() {
    python3 - "$1" <<'PYTHON'
import errno, os, sys
file, at, found = os.open(sys.argv[1], os.O_RDONLY), 0, 0
try:
    while True:
        begin = os.lseek(file, at, os.SEEK_DATA)
        at = os.lseek(file, begin, os.SEEK_HOLE)
        found += at - begin
except OSError as error:
    assert error.errno == errno.ENXIO
print(found)
PYTHON
}
changed=
expect() {
    found=$(data "$1/file")
    echo "$1, $2: $found bytes of data"
    [ "$found" -eq "$3" ] || changed=yes
}
for each in ext4 xfs tmpfs; do
    fallocate -l 8M "$each/file"
    expect "$each" "allocated" 0
    head -c 1048576 "$each/file" >/dev/null
    sync "$each/file"
    case $each in
    tmpfs) expect "$each" "1 MiB read" 0 ;;
    *) found=$(data "$each/file")
       echo "$each, 1 MiB read: $found bytes of data"
       [ "$found" -ge 1048576 ] || changed=yes ;;
    esac
    python3 -c "import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)" "$each/file"
    expect "$each" "page cache dropped" 0
done
[ -z "$changed" ] || { echo "the behaviour has changed" >&2; exit 1; }
