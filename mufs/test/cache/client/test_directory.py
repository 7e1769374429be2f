"""What a client keeps in a directory."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mufs.cache.client import directory, layout, writer
from mufs.cache.client.blocks import BlockCache
from mufs.cache.client.directory import CacheDirectory
from mufs.cache.client.layout import INDEX, RECORD, SERVER, UnusableDirectory, server_of, summaries
from mufs.cache.client.memory import Memory
from mufs.cache.client.writer import MAX_QUEUED
from mufs.interfaces import IBlockStorage
from mufs.test.cache.client.test_blocks import IMAGES, SIZE, content, read
from mufs.test.support.properties import examples
from mufs.wire.pages import BLOCK, BLOCK_PAGES, PAGE, ImageKey

HOST = "tcp:192.0.2.1:7040"
MAX_JOBS = MAX_QUEUED // BLOCK


class PersistentCache:
    """A cache in a directory, whose writing is done when it is told to."""

    def __init__(
        self,
        path: Path,
        size: int = 64 * (BLOCK + RECORD),
        now: float = 1000.0,
        server: str = HOST,
        reserve: int = 0,
    ) -> None:
        self.now = now
        self.directory = CacheDirectory(str(path), server, lambda: self.now, reserve=reserve)
        try:
            self.blocks = BlockCache(size, self.directory)
        except BaseException:
            self.directory.close()
            raise

    def store(self, image: ImageKey, block: int, first: int = 0, count: int = BLOCK_PAGES) -> None:
        offset = block * BLOCK + first * PAGE
        end = min(offset + count * PAGE, (block + 1) * BLOCK, SIZE)
        self.blocks.store(image, offset, content(image, offset, end - offset))

    def write_all(self) -> None:
        """Write all that waits."""
        self.blocks.stop()
        self.blocks.run_writer()

    def close(self) -> None:
        self.write_all()
        self.directory.close()

    def held(self, image: ImageKey) -> set[int]:
        """The pages of an image that can be read; they must be right."""
        pages = set()
        for page in range(-(-SIZE // PAGE)):
            length = min(PAGE, SIZE - page * PAGE)
            data = read(self.blocks, image, page * PAGE, length)
            if data is not None:
                assert data == content(image, page * PAGE, length), (image, page)
                pages.add(page)
        return pages


class DirectoryTestCase(SynchronousTestCase):
    """Has a path for a directory, and closes what was opened there."""

    def setUp(self) -> None:
        """There is nothing at the path yet."""
        self.path = Path(self.mktemp())
        self._open: list[PersistentCache] = []

    def tearDown(self) -> None:
        """Close what is open."""
        for cache in self._open:
            cache.directory.close()

    def open(self, *arguments: Any, **named: Any) -> PersistentCache:
        """The cache in the directory."""
        cache = PersistentCache(self.path, *arguments, **named)
        self._open.append(cache)
        return cache

    def restart(self, cache: PersistentCache, *arguments: Any, **named: Any) -> PersistentCache:
        """The same after a restart."""
        cache.close()
        return self.open(*arguments, **named)

    def used(self) -> int:
        """Bytes of the disk that the directory's files take."""
        return sum(os.lstat(each).st_blocks * 512 for each in self.path.iterdir())


class RestartTests(DirectoryTestCase):
    """What is there after a restart."""

    def test_interface(self) -> None:
        """Both storages are what the cache asks for."""
        self.assertTrue(verifyObject(IBlockStorage, self.open().directory))
        self.assertTrue(verifyObject(IBlockStorage, Memory()))

    def test_restart(self) -> None:
        """Pages that were stored are held, and no others, with the short last one."""
        cache = self.open()
        for image in IMAGES:
            cache.store(image, 0, 3, 5)
            cache.store(image, 0, 20, 2)
            cache.store(image, 4)
        there, figure = cache.held(IMAGES[0]), cache.blocks.held
        self.assertEqual(
            there, {3, 4, 5, 6, 7, 20, 21, *range(4 * BLOCK_PAGES, 4 * BLOCK_PAGES + 6)}
        )
        cache = self.restart(cache)
        self.assertEqual([cache.held(image) for image in IMAGES], [there] * 3)
        self.assertEqual(cache.blocks.held, figure)
        self.assertEqual(cache.blocks.held_blocks(IMAGES[1])[0], 0b11 << 20 | 0b11111 << 3)

    def test_any_range(self) -> None:
        """Ranges that begin or end within pages are read right, with the end of the image."""
        cache = self.open()
        cache.blocks.opened(IMAGES[0], b"disk.img", SIZE)
        for block in range(5):
            cache.store(IMAGES[0], block)
        cache = self.restart(cache)
        for offset, length in [
            (1, 10), (PAGE - 1, 2), (BLOCK - 5, BLOCK + 10), (SIZE - 1, 1), (SIZE - PAGE, PAGE),
            (0, SIZE), (SIZE - 99, 99), (5, 0), (4 * BLOCK, PAGE),
        ]:  # fmt: skip
            right = content(IMAGES[0], offset, length)
            self.assertEqual(read(cache.blocks, IMAGES[0], offset, length), right, (offset, length))

    def test_fresh(self) -> None:
        """What is not written yet is read all the same, also beside what is."""
        cache = self.open()
        cache.store(IMAGES[0], 0, 4, 4)
        cache.write_all()
        cache.store(IMAGES[0], 0, 0, 2)
        cache.store(IMAGES[0], 0, 2, 2)
        self.assertEqual(cache.held(IMAGES[0]), set(range(8)))
        right = content(IMAGES[0], 100, 7 * PAGE)
        self.assertEqual(read(cache.blocks, IMAGES[0], 100, 7 * PAGE), right)
        self.assertEqual(self.restart(cache).held(IMAGES[0]), set(range(8)))

    def test_not_written(self) -> None:
        """What was not written before the end is not there, and what was is."""
        cache = self.open()
        cache.store(IMAGES[0], 0)
        cache.write_all()
        cache.store(IMAGES[0], 1)
        cache.directory.close()
        self.assertEqual(self.open().held(IMAGES[0]), set(range(BLOCK_PAGES)))

    def test_order(self) -> None:
        """What a run of the client did not use goes before what it did, and first what is older."""
        cache = self.open(3 * (BLOCK + RECORD))
        cache.store(IMAGES[0], 0)
        cache.store(IMAGES[0], 1)
        cache.write_all()
        cache.now += 10
        cache.store(IMAGES[0], 2)
        cache = self.restart(cache, 3 * (BLOCK + RECORD), now=2000.0)
        self.assertIsNotNone(read(cache.blocks, IMAGES[0], 0, PAGE))
        cache = self.restart(cache, 3 * (BLOCK + RECORD), now=3000.0)
        cache.store(IMAGES[1], 0)
        self.assertEqual(set(cache.blocks.held_blocks(IMAGES[0])), {0, 2})
        cache.store(IMAGES[1], 1)
        self.assertEqual(set(cache.blocks.held_blocks(IMAGES[0])), {0})

    def test_far(self) -> None:
        """Blocks where no file can reach are not kept, and nothing else suffers."""
        cache = self.open()
        cache.blocks.opened(IMAGES[1], b"huge.img", (1 << 64) - 1)
        for offset in ((1 << 63) - BLOCK, 1 << 63, (1 << 64) - BLOCK):
            cache.blocks.store(IMAGES[1], offset, bytes(BLOCK))
            self.assertIsNone(read(cache.blocks, IMAGES[1], offset, PAGE))
        cache.store(IMAGES[0], 0)
        self.assertEqual(self.restart(cache).held(IMAGES[0]), set(range(BLOCK_PAGES)))

    def test_smaller(self) -> None:
        """With a smaller size the blocks used last are kept, and the space of others comes back."""
        cache = self.open()
        for number in range(4):
            cache.store(IMAGES[0], number)
            cache.write_all()
            cache.now += 1
        cache = self.restart(cache, 2 * (BLOCK + RECORD))
        self.assertEqual(set(cache.blocks.held_blocks(IMAGES[0])), {2, 3})
        self.assertLess(self.used(), 2 * BLOCK + 3 * PAGE)
        cache.store(IMAGES[0], 0)
        cache = self.restart(cache)
        self.assertEqual(
            cache.held(IMAGES[0]), {*range(BLOCK_PAGES), *range(3 * BLOCK_PAGES, 4 * BLOCK_PAGES)}
        )

    def test_replaced(self) -> None:
        """What another generation is opened in place of is dropped, with its files."""
        old, new, other = IMAGES
        cache = self.open()
        cache.blocks.opened(old, b"disk.img", SIZE)
        cache.blocks.opened(other, b"other.img", SIZE)
        cache.store(old, 0)
        cache.store(other, 0)
        cache = self.restart(cache)
        cache.blocks.opened(new, b"disk.img", SIZE)
        cache.store(new, 0, 0, 1)
        self.assertEqual(
            [len(cache.held(image)) for image in (old, new, other)], [0, 1, BLOCK_PAGES]
        )
        cache = self.restart(cache)
        self.assertEqual(
            [len(cache.held(image)) for image in (old, new, other)], [0, 1, BLOCK_PAGES]
        )
        paths = {each.path: each.key for each in summaries(str(self.path))}
        self.assertEqual(paths, {b"disk.img": new, b"other.img": other})
        self.assertEqual(len(list(self.path.iterdir())), 6)


class QuotaTests(DirectoryTestCase):
    """How much of the disk is taken."""

    def test_quota(self) -> None:
        """The files never take more than the size, but for the paths of images."""
        size = 1 << 20
        cache = self.open(size)
        for image in IMAGES * 3:
            for block in range(4):
                cache.store(image, block)
                cache.write_all()
                self.assertLessEqual(self.used(), size + (1 + len(IMAGES)) * PAGE)
        self.assertGreater(cache.blocks.evictions, 0)
        self.assertGreaterEqual(self.used(), size // (BLOCK + RECORD) * BLOCK)
        self.assertEqual(cache.blocks.damaged, 0)

    def fill_disk(self, left: int) -> None:
        """From now on the disk has room for C{left} blocks, which include those of the cache."""
        found = list(self.real_statvfs(self.path.parent))

        def statvfs(_: object) -> os.statvfs_result:
            found[0] = found[1] = PAGE
            found[4] = max(0, left * BLOCK - self.used()) // PAGE
            return os.statvfs_result(found)

        self.patch(os, "statvfs", statvfs)

    real_statvfs = staticmethod(os.statvfs)

    def test_disk_filled(self) -> None:
        """When others fill the disk, old blocks go until new ones fit, and a reserve stays free."""
        self.path.mkdir(mode=0o700)
        self.fill_disk(200)
        blocks = [(image, block) for image in IMAGES for block in range(4)]
        cache = self.open(reserve=10 * BLOCK)
        for image, block in blocks[:6]:
            cache.store(image, block)
        cache.write_all()
        cache.blocks.look_for_room()
        self.assertEqual((cache.blocks.held, cache.blocks.given_up), (6 * BLOCK, 0))
        self.fill_disk(14)
        for _ in range(3):
            cache.write_all()
            cache.blocks.look_for_room()
        cache.write_all()
        self.assertIn(cache.blocks.held // BLOCK, (2, 3))
        self.assertLessEqual(self.used(), 4 * BLOCK)
        self.assertEqual(cache.blocks.given_up, cache.blocks.evictions)
        for image, block in blocks[6:]:
            cache.store(image, block)
            cache.write_all()
            self.assertLessEqual(self.used(), 6 * BLOCK)
        self.assertIn(3 * BLOCK_PAGES, cache.held(blocks[-1][0]))
        self.assertEqual(cache.blocks.damaged, 0)

    def test_more_than_waits(self) -> None:
        """The space of all blocks that were given up comes free, whatever waits for the disk."""
        self.patch(writer, "MAX_QUEUED", 4 * BLOCK)
        self.path.mkdir(mode=0o700)
        self.fill_disk(200)
        cache = self.open(reserve=10 * BLOCK)
        for block in range(6):
            cache.store(IMAGES[0], block)
            cache.write_all()
        self.fill_disk(10)
        cache.blocks.look_for_room()
        cache.write_all()
        cache.blocks.make_room()
        for block in range(4):
            cache.store(IMAGES[1], block)
        cache.write_all()
        cache.blocks.look_for_room()
        cache.write_all()
        self.assertLess(self.used(), cache.blocks.held + BLOCK)
        self.assertEqual(cache.blocks.damaged, 0)

    def test_no_room_at_all(self) -> None:
        """Where even the reserve is used up nothing is kept, neither on the disk nor in memory."""
        self.path.mkdir(mode=0o700)
        self.fill_disk(4)
        cache = self.open(reserve=10 * BLOCK)
        for image in IMAGES * 2:
            for block in range(4):
                cache.store(image, block)
                cache.write_all()
        cache.blocks.make_room()
        self.assertEqual(cache.blocks.held, 0)
        self.assertLess(self.used(), BLOCK)

    def test_few_writes(self) -> None:
        """Pages of adjacent blocks go to the disk in one write, but for those dropped since."""
        cache = self.open()
        written: list[tuple[int, int]] = []
        pwritev = layout.pwritev

        def record(fd: int, parts: list[memoryview], offset: int) -> None:
            written.append((offset, sum(map(len, parts))))
            pwritev(fd, parts, offset)

        self.patch(directory, "pwritev", record)
        cache.blocks.store(IMAGES[0], 3 * PAGE, content(IMAGES[0], 3 * PAGE, 3 * BLOCK))
        cache.write_all()
        cache.blocks.store(IMAGES[1], 0, content(IMAGES[1], 0, 4 * BLOCK))
        cache.blocks.forget(IMAGES[1], 1)
        cache.write_all()
        self.assertEqual(written, [(3 * PAGE, 3 * BLOCK), (0, BLOCK), (2 * BLOCK, 2 * BLOCK)])
        self.assertEqual(
            cache.held(IMAGES[0]), set(range(3, min(3 + 3 * BLOCK_PAGES, -(-SIZE // PAGE))))
        )

    def test_error_of_full_disk(self) -> None:
        """A block that finds no space is dropped at once, with the oldest ones."""
        cache = self.open()
        for block in range(4):
            cache.store(IMAGES[0], block)
        cache.write_all()

        def pwrite(*_: object) -> None:
            raise OSError(errno.EDQUOT, "over quota")

        patch = self.patch(directory, "pwritev", pwrite)
        cache.store(IMAGES[1], 0)
        cache.write_all()
        patch.restore()
        cache.blocks.make_room()
        self.assertEqual(cache.blocks.held, 0)
        cache.store(IMAGES[1], 1)
        cache.write_all()
        self.assertEqual(cache.held(IMAGES[1]), set(range(BLOCK_PAGES, 2 * BLOCK_PAGES)))

    def test_slow_disk(self) -> None:
        """While nothing is written only so much waits in memory; what came last is held."""
        number = MAX_JOBS + 100
        cache = self.open(2 * number * (BLOCK + RECORD))
        for block in range(number):
            cache.blocks.store((9, 9), block * BLOCK, b"%8d" % block * (PAGE // 8))
            self.assertLessEqual(cache.blocks.held, MAX_JOBS * PAGE)
            self.assertEqual(cache.blocks.is_behind, block + 1 >= MAX_JOBS // 2)
        for block in range(number):
            there = read(cache.blocks, (9, 9), block * BLOCK, 8)
            self.assertEqual(there, b"%8d" % block if block >= 100 else None)
        cache = self.restart(cache, 2 * number * (BLOCK + RECORD))
        self.assertFalse(cache.blocks.is_behind)
        self.assertEqual(cache.blocks.held, MAX_JOBS * PAGE)


class DamageTests(DirectoryTestCase):
    """What came to the directory from elsewhere."""

    def make_directory(self) -> Path:
        """A directory with blocks of three images, closed."""
        cache = self.open()
        for number, image in enumerate(IMAGES):
            cache.blocks.opened(image, b"%d.img" % number, SIZE)
            for block in range(5):
                cache.store(image, block, number, 20)
        cache.close()
        return self.path

    @examples(80)
    @given(st.data())
    def test_any_damage(self, data: Any) -> None:
        """
        Whatever bytes of whichever files change, or are missing, what is read is right or not
        there; and what is stored again is right, and there after a restart.
        """
        if not hasattr(self, "template"):
            self.template = self.make_directory()
            self.names = sorted(os.listdir(self.template))
        trial = Path(self.mktemp())
        shutil.copytree(self.template, trial)
        for _ in range(data.draw(st.integers(1, 4))):
            damage(data, trial / data.draw(st.sampled_from(self.names)), trial, self.names)
        try:
            cache = PersistentCache(trial)
        except UnusableDirectory:
            spared = (trial / SERVER).exists() and (trial / SERVER).read_bytes()
            assert spared != (self.template / SERVER).read_bytes()
            shutil.rmtree(trial)
            return
        try:
            for number, image in enumerate(IMAGES):
                cache.blocks.opened(image, b"%d.img" % number, SIZE)
            for image in IMAGES:
                cache.held(image)
                for block in range(5):
                    asked = read(
                        cache.blocks, image, block * BLOCK, min(BLOCK, SIZE - block * BLOCK)
                    )
                    if asked is None:
                        cache.blocks.discard(image, block)
                        cache.store(image, block)
            cache.close()
            cache = PersistentCache(trial)
            everything = set(range(-(-SIZE // PAGE)))
            for image in IMAGES:
                self.assertEqual(cache.held(image), everything)
        finally:
            cache.directory.close()
        shutil.rmtree(trial)

    def test_stored_again(self) -> None:
        """Damaged blocks that are stored again, each in the other's slot, spoil nothing."""
        cache = self.open()
        cache.blocks.opened(IMAGES[0], b"disk.img", SIZE)
        for block in range(2):
            cache.store(IMAGES[0], block)
        cache = self.restart(cache)
        for block in range(2):
            cache.blocks.discard(IMAGES[0], block)
        for block in range(2):
            cache.store(IMAGES[0], block)
        self.assertEqual(self.restart(cache).held(IMAGES[0]), set(range(2 * BLOCK_PAGES)))

    def test_swapped(self) -> None:
        """Bytes and paths of one image are not taken for those of another."""
        self.make_directory()
        names = ["{:016x}-{:016x}".format(*image) for image in IMAGES]
        os.rename(self.path / names[0], self.path / "kept")
        os.rename(self.path / names[1], self.path / names[0])
        os.rename(self.path / "kept", self.path / names[1])
        cache = self.open()
        self.assertEqual([len(cache.held(image)) for image in IMAGES[:2]], [0, 0])
        self.assertGreater(len(cache.held(IMAGES[2])), 80)

    def test_other_server(self) -> None:
        """Even under the same numbers nothing is taken from another server's cache."""
        self.make_directory()
        (self.path / SERVER).write_bytes((self.path / SERVER).read_bytes().replace(b"2.1", b"2.2"))
        cache = self.open(server="tcp:192.0.2.2:7040")
        self.assertEqual([len(cache.held(image)) for image in IMAGES], [0, 0, 0])

    def test_removed(self) -> None:
        """A directory that is removed under the client is one that keeps nothing more."""
        cache = self.open()
        cache.store(IMAGES[0], 0)
        cache.write_all()
        shutil.rmtree(self.path)
        cache.blocks.discard(IMAGES[0], 0)
        self.patch(writer, "RETRY_INTERVAL", 0.0)
        cache.store(IMAGES[0], 1)
        cache.write_all()
        self.assertEqual(cache.held(IMAGES[0]), set(range(BLOCK_PAGES, 2 * BLOCK_PAGES)))


def damage(data: Any, path: Path, directory: Path, names: list[str]) -> None:
    """Do something to a file."""
    if not path.exists():
        return
    kind = data.draw(
        st.sampled_from(["flip", "truncate", "extend", "zeros", "remove", "copy", "shift"])
    )
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "remove":
        path.unlink()
        return
    if kind == "copy":
        other = directory / data.draw(st.sampled_from(names))
        if other.exists():
            content[:] = other.read_bytes()
    elif kind == "truncate":
        del content[place:]
    elif kind == "extend":
        content += data.draw(st.binary(min_size=1, max_size=1000))
    elif kind == "zeros":
        length = len(content[place : place + data.draw(st.integers(1, 3 * PAGE))])
        content[place : place + length] = bytes(length)
    elif kind == "shift":
        # Parts of the index at other places: each is right by itself.
        del content[: min(len(content), RECORD * data.draw(st.integers(1, 3)))]
    elif content:
        for _ in range(data.draw(st.integers(1, 8))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] ^= 1 << data.draw(st.integers(0, 7))
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()


class UseTests(DirectoryTestCase):
    """Which directories are taken."""

    def assert_refused(self, telling: str, act: Callable[[], object]) -> None:
        """It is refused, for this reason."""
        self.assertIn(telling, str(self.assertRaises(UnusableDirectory, act)))

    def test_one_at_a_time(self) -> None:
        """A directory that is in use is refused, and taken when it no longer is."""
        cache = self.open()
        self.assert_refused("a client uses it", self.open)
        self.restart(cache)

    def test_server(self) -> None:
        """A directory is of one server, by whatever options its endpoint has."""
        self.open(server=HOST + ":timeout=3").close()
        self.open(server=HOST).close()
        self.assert_refused(HOST, lambda: self.open(server="tcp:192.0.2.2:7040"))
        self.assertEqual(server_of("tls:host:7:certificate=a:trustRoots=b"), "tls:host:7")

    def test_not_empty(self) -> None:
        """A directory that holds something else is refused; one of a new file system is not."""
        self.path.mkdir(0o700)
        (self.path / "lost+found").mkdir()
        (self.path / "thesis").touch()
        self.assert_refused("not empty", self.open)
        self.assertEqual(sorted(os.listdir(self.path)), ["lost+found", "thesis"])
        (self.path / "thesis").unlink()
        self.open()

    def test_others_may_write(self) -> None:
        """A directory into which others may write is refused."""
        self.path.mkdir(0o700)
        self.open().close()
        self.path.chmod(0o770)
        self.assert_refused("others may write", self.open)

    def test_no_directory(self) -> None:
        """What is no directory, or has none above it, is refused with the reason."""
        self.assert_refused("No such file", lambda: PersistentCache(self.path / "below"))
        self.path.touch()
        self.assert_refused("Not a directory", self.open)

    def test_modes(self) -> None:
        """Nobody else can read what is kept."""
        cache = self.open()
        cache.blocks.opened(IMAGES[0], b"disk.img", SIZE)
        cache.store(IMAGES[0], 0)
        cache.write_all()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o700)
        modes = {each.stat().st_mode & 0o777 for each in self.path.iterdir()}
        self.assertEqual((modes, len(list(self.path.iterdir()))), ({0o600}, 4))

    def test_locked_for_good(self) -> None:
        """The lock is on the directory itself, so that removing its files does not free it."""
        self.open()
        (self.path / INDEX).unlink()
        fd = os.open(self.path, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        self.assertRaises(BlockingIOError, fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
