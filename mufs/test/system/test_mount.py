"""A mount as programs see it: the tree, its attributes, its errors and its bytes."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.loopback import (
    LIBFUSE2,
    Loopback,
    make_loopback,
    shared_loopback,
    start_libfuse2,
    why_unavailable,
)
from mufs.test.support.trees import (
    DEPTH,
    EXTENTS,
    GIB,
    LARGE,
    LINKS,
    MANY,
    MIB,
    NAMES,
    build,
    look,
    looks,
)
from mufs.wire.metadata import MAX_PATH_BYTES

NOBODY = 65534


@cache
def tree() -> Path:
    """Build the tree in the exported directory of `shared_loopback`, and return its path."""
    path = shared_loopback().images / "tree"
    path.mkdir()
    build(path)
    return path


class MountTestCase(SynchronousTestCase):
    """Has a tree: `source` on the server, and `mount` as the client shows it."""

    skip = why_unavailable()
    client = "here"

    def setUp(self) -> None:
        """Use the shared server, client and tree, which no test changes."""
        self.loopback: Loopback = shared_loopback()
        if self.client == LIBFUSE2:
            start_libfuse2()
        self.addCleanup(self.loopback.guard().cancel)
        self.source = tree()
        self.mount = self.loopback.mount_point(self.client) / "tree"

    def errno_of(self, function: Callable[..., object], *arguments: object) -> str:
        """Return the name of the errno of a call that fails."""
        try:
            function(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "none"

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int:
        """Open a file, and return a descriptor that is closed after the test."""
        descriptor = os.open(path, flags)
        self.addCleanup(os.close, descriptor)
        return descriptor


class TreeTests(MountTestCase):
    """Names and attributes."""

    def assert_same(self, name: str) -> None:
        """Assert that the files beneath a directory have the same names and attributes."""
        expected = looks(self.source / name)
        found = looks(self.mount / name)
        self.assertEqual(sorted(found), sorted(expected))
        different = {path: (found[path], expected[path]) for path in expected}
        self.assertEqual({k: v for k, v in different.items() if v[0] != v[1]}, {})
        self.assertGreater(len(found), 0)

    def test_kinds(self) -> None:
        """Files, directories, hard links, FIFOs and devices have the attributes of the source."""
        self.assert_same("kinds")
        first, second = (os.lstat(self.mount / "kinds" / name) for name in ("first", "second"))
        self.assertEqual((first.st_ino, first.st_nlink), (second.st_ino, 2))
        self.assertEqual(os.lstat(self.mount / "kinds" / "far").st_mtime_ns % 1000, 321)

    def test_top(self) -> None:
        """The top of the tree has the same entries, with their attributes, as the source."""
        expected = {name: look(self.source / name) for name in os.listdir(self.source)}
        found = {name: look(self.mount / name) for name in os.listdir(self.mount)}
        self.assertEqual(found, expected)

    def test_root(self) -> None:
        """The mount point has the attributes and entries of the exported directory."""
        mount, images = self.mount.parent, self.loopback.images
        time.sleep(1.1)  # until attributes cached before the tree was built expire
        self.assertEqual(look(mount), look(images))
        self.assertEqual(sorted(os.listdir(mount)), sorted(os.listdir(images)))

    def test_entry_types(self) -> None:
        """A listing gives the same types and inodes as the source's."""
        listings = []
        for top in (self.source, self.mount):
            with os.scandir(top / "kinds") as entries:
                listings.append(
                    {
                        entry.name: (
                            entry.inode(),
                            entry.is_dir(follow_symlinks=False),
                            entry.is_file(follow_symlinks=False),
                            entry.is_symlink(),
                        )
                        for entry in entries
                    }
                )
        self.assertEqual(listings[1], listings[0])

    def test_names(self) -> None:
        """Names of 255 bytes and of arbitrary bytes are listed, and open the right files."""
        self.assert_same("names")
        for name in NAMES:
            with open(os.path.join(os.fsencode(self.mount / "names"), name), "rb") as file:
                self.assertEqual(file.read(), name * 3)

    def test_symbolic_links(self) -> None:
        """Symbolic links have their original targets, and are followed on this host."""
        for name, target in LINKS.items():
            self.assertEqual(os.readlink(os.fsencode(self.mount / name)), target)
        plain = (self.source / "plain").read_bytes()
        self.assertEqual((self.mount / "relative").read_bytes(), plain)
        self.assertEqual((self.mount / "upwards").read_bytes(), plain)
        self.assertEqual(
            sorted(os.listdir(self.mount / "directory")), sorted(os.listdir(self.source / "kinds"))
        )

    def requests(self) -> int:
        """Count the requests that all clients have made."""
        clients = self.loopback.services["server"].status()["clients"]
        return sum(client["requests"] for client in clients)

    def test_many_files(self) -> None:
        """
        A directory of 10,000 files is listed completely, also by `ls -l`, and without asking the
        server for each.
        """
        before = self.requests()
        with os.scandir(self.mount / "many") as entries:
            self.assertEqual(len({entry.name for entry in entries}), MANY)
        lines = subprocess.run(
            ["ls", "-l", self.mount / "many"], check=True, capture_output=True
        ).stdout
        self.assertEqual(lines.count(b"\n"), MANY + 1)
        self.assertLess(self.requests() - before, MANY // 10)
        self.assert_same("many")

    def test_deeper_than_a_path(self) -> None:
        """A tree deeper than PATH_MAX can be walked step by step."""
        below = self.open(self.mount / "deep", os.O_RDONLY | os.O_DIRECTORY)
        for level in range(DEPTH):
            (name,) = os.listdir(below)
            self.assertEqual(name, chr(ord("a") + level) * 255)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=below)
            self.addCleanup(os.close, below)
        bottom = os.open("bottom", os.O_RDONLY, dir_fd=below)
        self.addCleanup(os.close, bottom)
        self.assertEqual(os.read(bottom, 100), b"at the bottom")

    def test_longest_path(self) -> None:
        """A path of nearly PATH_MAX bytes works, and a longer one fails as on the source."""
        for levels in (14, 15, 16):
            below = "/".join(["deep", *(chr(ord("a") + level) * 255 for level in range(levels))])
            results = [self.errno_of(os.stat, top / below) for top in (self.source, self.mount)]
            self.assertIn(results[1], {"none", "ENAMETOOLONG"})
            if len(os.fsencode(self.source / below)) < 4096:
                self.assertEqual(results, ["none"] * 2)
                self.assertEqual(look(self.mount / below), look(self.source / below))

    def test_statistics(self) -> None:
        """The sizes in statfs are those of the server's file system."""
        found, expected = os.statvfs(self.mount), os.statvfs(self.source)
        self.assertEqual(
            (found.f_frsize, found.f_blocks, found.f_files, found.f_namemax),
            (expected.f_frsize, expected.f_blocks, expected.f_files, expected.f_namemax),
        )

    def test_special_files(self) -> None:
        """Opening a FIFO is local to this host: it gives the server's FIFO no reader."""
        self.open(self.mount / "kinds" / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        fifo = self.source / "kinds" / "fifo"
        self.assertEqual(self.errno_of(os.open, fifo, os.O_WRONLY | os.O_NONBLOCK), "ENXIO")
        device = self.mount / "kinds" / "character"
        self.assertEqual(self.errno_of(os.open, device, os.O_RDONLY), "EACCES")

    def test_several_file_systems(self) -> None:
        """Files of different file systems beneath the root are distinct."""
        volumes = [self.loopback.images / name for name in ("volume1", "volume2")]
        for volume in volumes:
            volume.mkdir()
            self.addCleanup(volume.rmdir)
            subprocess.run(["mount", "-t", "tmpfs", "none", str(volume)], check=True)
            self.addCleanup(subprocess.run, ["umount", "-l", str(volume)], check=True)
            (volume / "file").write_text(volume.name)
        top = self.mount.parent
        inodes = {os.lstat(top / volume.name).st_ino for volume in volumes}
        inodes |= {os.lstat(top / volume.name / "file").st_ino for volume in volumes}
        self.assertEqual(len(inodes), 4)


class PermissionTests(MountTestCase):
    """Permissions to read, and the refusal of writes."""

    def as_nobody(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command as an unprivileged user."""
        return subprocess.run(
            command,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def test_access(self) -> None:
        """access(2) grants root reading, execution of executables, and no writing."""
        for name in os.listdir(self.source / "kinds"):
            path = self.mount / "kinds" / name
            self.assertTrue(os.access(path, os.F_OK | os.R_OK, follow_symlinks=False), name)
            mode = os.lstat(path).st_mode
            runs = stat.S_ISDIR(mode) or bool(mode & 0o111)
            self.assertEqual(os.access(path, os.X_OK), runs, name)
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                self.assertFalse(os.access(path, os.W_OK), name)

    def test_other_users(self) -> None:
        """Another user can read only what its mode permits."""
        kinds = self.mount / "kinds"
        self.assertEqual(self.as_nobody("cat", kinds / "644").stdout, "mode")
        for name in ("600", "0", "closed/file"):
            self.assertIn("Permission denied", self.as_nobody("cat", kinds / name).stderr)
        self.assertIn("Permission denied", self.as_nobody("ls", kinds / "closed").stderr)
        for flag, name, status in (
            ("-r", "600", 1),
            ("-r", "644", 0),
            ("-x", "644", 1),
            ("-x", "755", 0),
            ("-w", "1777", 1),
            ("-r", "closed", 1),
        ):
            done = self.as_nobody("test", flag, kinds / name)
            self.assertEqual(done.returncode, status, f"test {flag} {name}")

    def test_others_kept_out(self) -> None:
        """Without --allow-other only the user who mounted can enter the mount."""
        self.addCleanup(self.loopback.start_client("private").stop)
        private = self.loopback.mount_point("private")
        self.assertIn("Permission denied", self.as_nobody("ls", private).stderr)
        self.assertEqual(look(private / "tree" / "plain"), look(self.source / "plain"))

    def test_programs_run(self) -> None:
        """Programs on the mount can be run."""
        done = subprocess.run([self.mount / "kinds" / "script"], check=False, timeout=30)
        self.assertEqual(done.returncode, 7)

    def test_read_only(self) -> None:
        """All operations that would change something fail with EROFS."""
        plain, new, kinds = self.mount / "plain", self.mount / "new", self.mount / "kinds"
        attempts: list[Callable[[], object]] = [
            *(
                partial(os.open, plain, flags)
                for flags in (os.O_WRONLY, os.O_RDWR, os.O_APPEND | os.O_WRONLY, os.O_TRUNC)
            ),
            partial(os.open, new, os.O_CREAT | os.O_RDWR),
            partial(os.mkdir, new),
            partial(os.mkfifo, new),
            partial(os.unlink, plain),
            partial(os.rmdir, kinds / "directory"),
            partial(os.rename, plain, new),
            partial(os.rename, plain, self.mount / "image"),
            partial(os.link, plain, new),
            partial(os.symlink, "target", new),
            partial(os.chmod, plain, 0o777),
            partial(os.chown, plain, 1, 1),
            partial(os.lchown, self.mount / "dangling", 1, 1),
            partial(os.utime, plain),
            partial(os.truncate, plain, 0),
            partial(os.setxattr, plain, "user.name", b"value"),
            partial(os.removexattr, plain, "user.name"),
        ]
        for attempt in attempts:
            name = f"{attempt.func.__name__}{attempt.args}"  # type: ignore[attr-defined]
            failed = self.errno_of(attempt)
            self.assertEqual(failed, "EROFS", name)
        with open(self.mount / "plain", "rb") as file:
            self.assertEqual(self.errno_of(os.fchmod, file.fileno(), 0o777), "EROFS")
            self.assertEqual(self.errno_of(os.write, file.fileno(), b"x"), "EBADF")
        self.assertEqual(look(plain), look(self.source / "plain"))

    def test_extended_attributes(self) -> None:
        """There are no extended attributes: none can be read, and the list of them is empty."""
        plain = self.mount / "plain"
        for name in ("user.name", "security.selinux", "trusted.name"):
            self.assertEqual(self.errno_of(os.getxattr, plain, name), "ENOTSUP")
        self.assertEqual(os.listxattr(plain), [])


class ErrorTests(MountTestCase):
    """Operations fail with the same errors as on the source."""

    def assert_alike(self, function: Callable[..., object], path: str, *rest: object) -> str:
        """Assert that a call fails with the same error on both sides, and return its name."""
        expected = self.errno_of(function, self.source / path, *rest)
        self.assertEqual(self.errno_of(function, self.mount / path, *rest), expected, path)
        return expected

    def test_paths(self) -> None:
        """Paths that do not exist, lead through a file or a loop, or are too long fail alike."""
        for path, expected in (
            ("none", "ENOENT"),
            ("none/below", "ENOENT"),
            ("kinds/none", "ENOENT"),
            ("dangling", "ENOENT"),
            ("plain/below", "ENOTDIR"),
            ("relative/below", "ENOTDIR"),
            ("loop", "ELOOP"),
            ("loop/below", "ELOOP"),
            ("x" * 256, "ENAMETOOLONG"),
            ("kinds/" + "x" * 256, "ENAMETOOLONG"),
            ("x/" * 2100, "ENAMETOOLONG"),
        ):
            for function in (os.stat, os.listdir, open):
                self.assertEqual(self.assert_alike(function, path), expected)

    def test_kinds(self) -> None:
        """Using a file as a directory, a directory as a file, and so on fails alike."""
        for function, path, rest, expected in (
            (os.listdir, "plain", (), "ENOTDIR"),
            (os.open, "plain", (os.O_DIRECTORY,), "ENOTDIR"),
            (os.open, "relative", (os.O_NOFOLLOW,), "ELOOP"),
            (os.open, "kinds", (os.O_WRONLY,), "EISDIR"),
            (os.readlink, "plain", (), "EINVAL"),
            (os.readlink, "kinds", (), "EINVAL"),
            (os.open, "kinds/socket", (os.O_RDONLY,), "ENXIO"),
            (os.open, "plain", (os.O_CREAT | os.O_EXCL,), "EEXIST"),
            (os.mkdir, "kinds", (), "EEXIST"),
        ):
            self.assertEqual(self.assert_alike(function, path, *rest), expected, path)

    def test_descriptors(self) -> None:
        """Reading a directory, or at a negative offset, fails alike."""
        for top in (self.source, self.mount):
            directory = self.open(top / "kinds", os.O_RDONLY)
            self.assertEqual(self.errno_of(os.read, directory, 10), "EISDIR")
            plain = self.open(top / "plain")
            self.assertEqual(self.errno_of(os.lseek, plain, -1, os.SEEK_SET), "EINVAL")
            self.assertEqual(self.errno_of(os.pread, plain, 10, -1), "EINVAL")


class ReadTests(MountTestCase):
    """The bytes of files."""

    hole, data = 5, 3 * MIB

    def assert_reads(self, name: str, ranges: list[tuple[int, int]]) -> None:
        """Assert that concurrent reads of these ranges give the source's bytes."""
        source, mount = self.open(self.source / name), self.open(self.mount / name)

        def differs(where: tuple[int, int]) -> bool:
            return os.pread(mount, where[1], where[0]) != os.pread(source, where[1], where[0])

        with ThreadPoolExecutor(6) as threads:
            wrong = [
                where
                for where, is_wrong in zip(ranges, threads.map(differs, ranges), strict=True)
                if is_wrong
            ]
        self.assertEqual(wrong, [])

    def test_random(self) -> None:
        """Reads with random offsets and lengths, also beyond the end, give the right bytes."""
        seed = Random().randrange(1 << 32)
        random = Random(seed)
        size = os.stat(self.source / "image").st_size
        lengths = [1, 511, 4096, 4097, 65536, 131_072, 131_073, 400_000]
        ranges = [(random.randrange(size + 10_000), random.choice(lengths)) for _ in range(400)]
        try:
            self.assert_reads("image", ranges)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None

    def test_large(self) -> None:
        """A sparse file is read right before, across and beyond 4 GiB."""
        self.assertGreater(LARGE, 5 * GIB)
        around = [-4097, -1, 0, 1, 100_000, 149_999, 150_000]
        ranges = [
            (max(0, start + shift), length)
            for start in [*EXTENTS, 4 * GIB, LARGE - 150_000]
            for shift in around
            for length in (1, 5000, 300_000)
        ]
        self.assert_reads("large", ranges)

    def test_sparse(self) -> None:
        """A sparse file has as few blocks as the source, and its holes read as zeros."""
        for name in ("large", "kinds/sparse"):
            found = os.stat(self.mount / name)
            self.assertEqual(found.st_blocks, os.stat(self.source / name).st_blocks)
            self.assertLess(found.st_blocks * 512, found.st_size)
        sparse = (self.mount / "kinds" / "sparse").read_bytes()
        self.assertEqual(sparse, bytes(3 * MIB) + b"an island" + bytes(5 * MIB - 9))

    def test_holes(self) -> None:
        """lseek(2) finds data where it is on the source; none at the end of a file or after it."""
        descriptor = self.open(self.mount / "kinds" / "sparse")
        size = os.fstat(descriptor).st_size
        self.assertEqual(os.lseek(descriptor, 5, os.SEEK_HOLE), self.hole)
        self.assertEqual(os.lseek(descriptor, 5, os.SEEK_DATA), self.data)
        self.assertEqual(os.lseek(descriptor, 3 * MIB + 5, os.SEEK_DATA), 3 * MIB + 5)
        for offset in (size, size + 1, size + GIB):
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                self.assertEqual(self.errno_of(os.lseek, descriptor, offset, whence), "ENXIO")

    def test_empty(self) -> None:
        """An empty file reads as empty."""
        self.assertEqual((self.mount / "kinds" / "empty").read_bytes(), b"")
        self.assertEqual(os.pread(self.open(self.mount / "kinds" / "empty"), 100, 4096), b"")

    def test_end(self) -> None:
        """Seeking to the end gives the size; reads are short at the end, and empty beyond it."""
        for name in ("image", "large", "kinds/page"):
            size = os.stat(self.source / name).st_size
            file = self.open(self.mount / name)
            self.assertEqual(os.lseek(file, 0, os.SEEK_END), size)
            self.assertEqual(os.read(file, 100), b"")
            self.assertEqual(len(os.pread(file, 100, size - 10)), 10)
            self.assertEqual(os.pread(file, 100, size + 5000), b"")

    def test_direct(self) -> None:
        """Direct reads give the right bytes up to the end."""
        direct = self.open(self.mount / "image", os.O_RDONLY | os.O_DIRECT)
        expected = (self.source / "image").read_bytes()
        with mmap.mmap(-1, MIB) as buffer:
            for offset in (0, 4096, 5 * MIB, 16 * MIB - 8192, 16 * MIB):
                count = os.preadv(direct, [buffer], offset)
                self.assertEqual(buffer[:count], expected[offset : offset + MIB])

    def test_mapped(self) -> None:
        """A file mapped into memory, privately or shared, shows the right bytes."""
        expected = (self.source / "image").read_bytes()
        file = self.open(self.mount / "image")
        for flags in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
            with mmap.mmap(file, 0, flags=flags, prot=mmap.PROT_READ) as mapped:
                for offset in (9 * MIB, 17, 16 * MIB + 1000, 3 * MIB - 1):
                    self.assertEqual(
                        mapped[offset : offset + 5000], expected[offset : offset + 5000]
                    )
                self.assertEqual(mapped[:], expected)

    def test_sendfile(self) -> None:
        """The kernel can copy a file by sendfile."""
        source = self.open(self.mount / "kinds" / "first")
        target = self.open(Path(self.mktemp()), os.O_CREAT | os.O_RDWR)
        while os.sendfile(target, source, None, MIB):
            pass
        expected = (self.source / "kinds" / "first").read_bytes()
        self.assertEqual(os.pread(target, MIB, 0), expected)

    def test_copies(self) -> None:
        """A copy by `cp -a` is equal according to `diff` and lstat."""
        copy = Path(self.mktemp()).absolute()
        copy.mkdir()
        names = ["plain", "kinds", "names", "image", *LINKS]
        subprocess.run(
            ["cp", "-a", "--", *(str(self.mount / name) for name in names), str(copy)],
            check=True,
            timeout=60,
        )

        def kept(top: Path, path: bytes) -> tuple[int, ...]:
            file = os.path.normpath(os.path.join(os.fsencode(top), path))
            mode, _, links, *owner, size, _, modified, _ = look(file)
            return (mode, links, *owner, 0 if stat.S_ISDIR(mode) else size, modified)

        for name in names:
            below = looks(self.source / name)
            self.assertEqual(set(looks(copy / name)), set(below))
            for path in [b".", *below]:
                found, expected = (kept(top / name, path) for top in (copy, self.source))
                self.assertEqual(found, expected, (name, path))
        for name in ("kinds/directory", "names", "image", "kinds/first", "kinds/sparse"):
            subprocess.run(
                ["diff", "-r", "--no-dereference", self.source / name, copy / name],
                check=True,
                timeout=60,
            )

    def test_archive(self) -> None:
        """Archives by `tar` of the mount and of the source are identical."""
        archives = [
            subprocess.run(
                [
                    "tar",
                    "-c",
                    "--format=posix",
                    "--sort=name",
                    "--pax-option=delete=?time",
                    "-C",
                    top,
                    "kinds",
                    "names",
                    "plain",
                    "long",
                ],
                check=True,
                capture_output=True,
                timeout=60,
            ).stdout
            for top in (self.source, self.mount)
        ]
        self.assertEqual(archives[0] == archives[1], True)

    def test_two_clients(self) -> None:
        """Two clients on one machine read the same file right at the same time."""
        self.addCleanup(self.loopback.start_client("second").stop)
        second = self.loopback.mount_point("second") / "tree"
        with ThreadPoolExecutor(2) as threads:
            read = threads.map(lambda top: (top / "image").read_bytes(), (self.mount, second))
            expected = (self.source / "image").read_bytes()
            self.assertEqual([data == expected for data in read], [True, True])

    def test_quiet(self) -> None:
        """Reads and look-ups write nothing into the logs."""
        services = [self.loopback.services[name] for name in ("server", self.client)]
        before = [service.output for service in services]
        for number in range(1000, 1050):
            (self.mount / "many" / f"file {number}").read_bytes()
        self.assertFalse((self.mount / "none").exists())
        self.assertEqual([service.output for service in services], before)
        self.assertNotIn("Traceback", "".join(before))

    def test_descriptors(self) -> None:
        """Opening and closing files leaves no descriptor open on either side."""
        services = [self.loopback.services[name] for name in ("server", self.client)]

        def count() -> list[int]:
            return [len(os.listdir(f"/proc/{service.pid}/fd")) for service in services]

        for name in ("plain", "image"):
            (self.mount / name).read_bytes()
        before = count()
        for number in range(300):
            self.assertEqual(len((self.mount / "many" / f"file {number}").read_bytes()), number % 3)
        time.sleep(0.5)
        for here, then in zip(count(), before, strict=True):
            self.assertLess(here, then + 20)


class Libfuse2TreeTests(TreeTests):
    """The same with libfuse 2."""

    client = LIBFUSE2


class Libfuse2ReadTests(ReadTests):
    """The same with libfuse 2: all is data."""

    client = LIBFUSE2
    hole, data = 8 * MIB, 5


class DepthTests(SynchronousTestCase):
    """Directories that are deeper than a request's path may be long."""

    skip = why_unavailable()

    def test_deep(self) -> None:
        """The first name that is too deep is ENAMETOOLONG, and the connection stays."""
        loopback = make_loopback(self)
        name, depth = "d" * 250, MAX_PATH_BYTES // 251
        at = os.open(loopback.images, os.O_RDONLY)
        for _ in range(depth + 1):
            os.mkdir(name, dir_fd=at)
            above, at = at, os.open(name, os.O_RDONLY, dir_fd=at)
            os.close(above)
        os.close(at)
        loopback.start_server()
        client = loopback.start_client("client")
        at = os.open(loopback.mount_point("client"), os.O_RDONLY)
        for _ in range(depth):
            above, at = at, os.open(name, os.O_RDONLY, dir_fd=at)
            os.close(above)
        try:
            error = self.assertRaises(OSError, os.stat, name, dir_fd=at)
            self.assertEqual(error.errno, errno.ENAMETOOLONG)
            self.assertEqual(os.listdir(at), [name])
        finally:
            os.close(at)
        self.assertNotIn("is lost", client.output)
