#!/bin/sh
# util-linux 2.38.1, Linux 6.18: `mount -t erofs FILE DIRECTORY` binds a loop device without having been
# asked for one, although the kernel (CONFIG_EROFS_FS_BACKED_BY_FILE, since 6.12) mounts the file
# itself when mount(2) is called with it.
#
# Expected: that mount(8) passes the file on, or says that it takes a loop device. What is mounted
# then reads ahead as that device does, which may be 20 times as much (read-ahead-only-grows.sh).
#
# Needs root, a loop device, Python 3, and Debian's apt-get for erofs-utils 1.5-1, which is unpacked in
# a temporary directory and not installed.
set -eu
uname -sr
mount --version
directory=$(mktemp -d)
remove() {
    ! mountpoint -q "$directory/mnt" || umount "$directory/mnt"
    rm -r "$directory"
}
trap remove EXIT
cd "$directory"
apt-get download -qq -o APT::Sandbox::User=root erofs-utils=1.5-1
dpkg-deb -x erofs-utils_*.deb .
mkdir mnt tree
head -c 3000000 /dev/urandom >tree/file
usr/bin/mkfs.erofs image tree >/dev/null

source() {
    findmnt --noheadings --output SOURCE "$directory/mnt"
}
mount -t erofs image mnt
by_mount8=$(source)
umount mnt
python3 - "$directory/image" "$directory/mnt" <<'PYTHON'
import ctypes
import os
import sys

MS_RDONLY = 1
source, target = (word.encode() for word in sys.argv[1:])
if ctypes.CDLL(None, use_errno=True).mount(source, target, b"erofs", MS_RDONLY, None) != 0:
    sys.exit(f"mount(2): {os.strerror(ctypes.get_errno())}")
PYTHON
cmp tree/file mnt/file
by_mount2=$(source)
echo "the source by mount(8): $by_mount8"
echo "the source by mount(2): $by_mount2"
case $by_mount8,$by_mount2 in
/dev/loop*,"$directory/image") ;;
*) echo "the behaviour has changed" >&2; exit 1 ;;
esac
