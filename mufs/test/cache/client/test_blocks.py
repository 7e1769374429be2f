"""The blocks of images that a host holds."""

import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from random import Random
from threading import Thread
from types import FrameType
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client.blocks import BlockCache
from mufs.cache.client.memory import Memory
from mufs.test.support.properties import examples
from mufs.wire.pages import BLOCK, BLOCK_PAGES, PAGE, ImageKey, split_into_blocks

T = TypeVar("T")


def read(cache: BlockCache, image: ImageKey, offset: int, length: int) -> bytes | None:
    """The bytes at an offset, or None when not all of them are held."""
    target = bytearray(length)
    return bytes(target) if cache.read(image, offset, memoryview(target)) else None


SIZE = 4 * BLOCK + 5 * PAGE + 100
"""Bytes of each image here: the last page is short."""

IMAGES: list[ImageKey] = [(1, 1), (1, 2), (2, 1)]


def content(image: ImageKey, offset: int, length: int) -> bytes:
    """Bytes of an image: no two of its pages, and no two images, are alike."""
    first, last = offset // PAGE, -(-(offset + length) // PAGE)
    pages = b"".join(
        (b"%d,%d,%d;" % (*image, page)).ljust(16, b".") * (PAGE // 16)
        for page in range(first, last)
    )
    return pages[offset % PAGE : offset % PAGE + length]


class Model:
    """What a cache of some blocks has to hold."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.blocks: OrderedDict[tuple[ImageKey, int], int] = OrderedDict()
        self.evictions = 0

    @property
    def held(self) -> int:
        return sum(PAGE * pages.bit_count() for pages in self.blocks.values())

    def store(self, image: ImageKey, block: int, pages: int) -> None:
        held = self.blocks.pop((image, block), 0)
        if not held and len(self.blocks) == self.slots:
            self.blocks.popitem(last=False)
            self.evictions += 1
        self.blocks[image, block] = held | pages

    def read(self, image: ImageKey, offset: int, length: int) -> bytes | None:
        whole = True
        for block, pages in split_into_blocks(offset, length):
            if pages & ~self.blocks.get((image, block), 0):
                whole = False
            else:
                self.blocks.move_to_end((image, block))
        return content(image, offset, length) if whole else None


RUNS = st.tuples(st.integers(0, 4), st.integers(0, BLOCK_PAGES - 1), st.integers(1, BLOCK_PAGES))
"""Block, first page, number of pages (as many of them as there are)."""

LONG_RUNS = st.tuples(st.integers(0, 4), st.integers(0, BLOCK_PAGES - 1), st.integers(1, 256))

RANGES = st.one_of(
    st.tuples(st.integers(0, SIZE), st.integers(0, 2 * BLOCK)),
    RUNS.map(lambda run: (run[0] * BLOCK + run[1] * PAGE, run[2] * PAGE)),
)
"""Offset and length in bytes (as much of it as there is)."""


class ModelTests(SynchronousTestCase):
    """The cache against what it has to be."""

    @examples(200)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(IMAGES),
                st.one_of(
                    st.tuples(st.just("store"), st.one_of(RUNS, LONG_RUNS)),
                    st.tuples(st.just("read"), RANGES),
                ),
            ),
            min_size=1,
            max_size=40,
        )
    )
    def test_any_use(self, steps: list[tuple[ImageKey, Any]]) -> None:
        """
        A read gives exactly the image's bytes, or nothing when a page of it is not held; the
        block that was used least recently goes; the counters tell the truth.
        """
        cache, model = BlockCache(3 * BLOCK + BLOCK // 2), Model(3)
        for image, (step, what) in steps:
            if step == "store":
                block, first, count = what
                offset = block * BLOCK + first * PAGE
                end = min(offset + count * PAGE, SIZE)
                if offset < end:
                    cache.store(image, offset, content(image, offset, end - offset))
                    for piece in split_into_blocks(offset, end - offset):
                        model.store(image, *piece)
            else:
                offset, length = what
                length = max(0, min(length, SIZE - offset))
                self.assertEqual(
                    read(cache, image, offset, length), model.read(image, offset, length)
                )
            self.assertEqual((cache.held, cache.evictions), (model.held, model.evictions))
        for image in IMAGES:
            for block in range(5):
                held = model.blocks.get((image, block), 0)
                for pages in (1, 0xFFFFFFFF, 0x0F0F0F0F):
                    self.assertEqual(cache.missing(image, block, pages), pages & ~held)


class BlockCacheTests(SynchronousTestCase):
    """Single properties, to be read as examples."""

    def test_merging(self) -> None:
        """Pages that came one by one, in any order, are read as one range."""
        cache = BlockCache(BLOCK)
        for page in (2, 0, 1):
            cache.store((1, 1), page * PAGE, content((1, 1), page * PAGE, PAGE))
        self.assertEqual(read(cache, (1, 1), 100, 2 * PAGE), content((1, 1), 100, 2 * PAGE))
        self.assertIsNone(read(cache, (1, 1), 0, 3 * PAGE + 1))

    def test_generations(self) -> None:
        """Bytes of one generation are nothing to another."""
        cache = BlockCache(4 * BLOCK)
        cache.store((1, 1), 0, b"old".ljust(PAGE))
        self.assertIsNone(read(cache, (1, 2), 0, 3))
        cache.store((1, 2), 0, b"new".ljust(PAGE))
        self.assertEqual([read(cache, (1, g), 0, 3) for g in (1, 2)], [b"old", b"new"])

    def test_beyond_4_gib(self) -> None:
        """Offsets are not cut at 32 bits."""
        cache = BlockCache(4 * BLOCK)
        far = (1 << 63) + 3 * BLOCK
        cache.store((1, 1), far, b"far".ljust(PAGE))
        self.assertIsNone(read(cache, (1, 1), 3 * BLOCK, 3))
        self.assertEqual(read(cache, (1, 1), far, 3), b"far")

    def test_smallest(self) -> None:
        """A cache of less than a block has one all the same."""
        cache = BlockCache(1)
        cache.store((1, 1), 0, bytes(BLOCK))
        cache.store((1, 1), BLOCK, b"next".ljust(PAGE))
        self.assertIsNone(read(cache, (1, 1), 0, 1))
        self.assertEqual(read(cache, (1, 1), BLOCK, 4), b"next")
        self.assertEqual((cache.held, cache.evictions), (PAGE, 1))

    def test_no_pages(self) -> None:
        """What does not begin with a page is not taken."""
        cache = BlockCache(4 * BLOCK)
        for offset, length in [(1, PAGE), (PAGE - 1, 1), (BLOCK - 1, BLOCK)]:
            self.assertRaises(ValueError, cache.store, (1, 1), offset, bytes(length))
        self.assertEqual(cache.held, 0)


CODE = [part.read.__code__.co_filename for part in (BlockCache, Memory)]


def at_opcode(place: int, act: Callable[[], object], function: Callable[..., T], *args: Any) -> T:
    """Call a function of the cache, and do something else just before its opcode C{place}."""
    left = [place]

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in CODE:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if left[0] == 0:
                act()
            left[0] -= 1
        return trace

    before = sys.gettrace()
    # Python 3.12 traces opcodes only where a frame has asked for them before.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        return function(*args)
    finally:
        sys.settrace(before)


class ThreadTests(SynchronousTestCase):
    """Readers in threads while one thread stores."""

    def make_cache(self) -> BlockCache:
        """A cache that holds two blocks of the first image, and is full."""
        cache = BlockCache(2 * BLOCK)
        self.store(cache, IMAGES[0], 0)
        self.store(cache, IMAGES[0], 1)
        return cache

    def store(self, cache: BlockCache, image: ImageKey, block: int, length: int = BLOCK) -> None:
        cache.store(image, block * BLOCK, content(image, block * BLOCK, length))

    def test_read_interrupted(self) -> None:
        """Wherever in a read blocks are evicted, and come anew, it gives right bytes or none."""
        first, second, _ = IMAGES
        replacing: list[list[tuple[ImageKey, int, int]]] = [
            [(second, 0, BLOCK)],
            [(second, 0, BLOCK), (second, 1, BLOCK)],
            [(second, 0, BLOCK), (second, 1, BLOCK), (first, 0, PAGE)],
            [(second, 0, BLOCK), (second, 1, BLOCK), (first, 1, PAGE), (first, 0, PAGE)],
        ]
        for stores in replacing:
            for offset, length in [(BLOCK - 10, 20), (PAGE, 10), (BLOCK + PAGE, PAGE)]:
                right = content(first, offset, length)
                for place in range(400):
                    cache = self.make_cache()
                    acted: list[bool] = []

                    def act(cache: BlockCache = cache, acted: list[bool] = acted) -> None:
                        acted.append(True)
                        for store in stores:  # noqa: B023
                            self.store(cache, *store)

                    found = at_opcode(place, act, read, cache, first, offset, length)
                    self.assertIn(found, (right, None), f"at opcode {place}")
                    if not acted:
                        break
                self.assertEqual((found, acted), (right, []))
                self.assertGreater(place, 20)

    def test_store_interrupted(self) -> None:
        """Wherever in a store a read comes, it gives right bytes or none."""
        first, second, _ = IMAGES
        for block, length in [(0, BLOCK), (2, BLOCK), (2, PAGE), (1, BLOCK + PAGE)]:
            for place in range(1500):
                cache = self.make_cache()
                if block == 0:
                    self.store(cache, second, 0, PAGE)
                found: list[tuple[ImageKey, int, bytes | None]] = []

                def act(cache: BlockCache = cache, found: list[Any] = found) -> None:
                    for image in (first, second):
                        for offset in (0, PAGE, 2 * BLOCK):
                            found.append((image, offset, read(cache, image, offset, PAGE)))

                at_opcode(place, act, self.store, cache, second, block, length)
                for image, offset, data in found:
                    self.assertIn(data, (content(image, offset, PAGE), None), f"at {place}")
                if not found:
                    break
            self.assertEqual(found, [])
            self.assertGreater(place, 20)

    def test_threads(self) -> None:
        """While blocks are stored and evicted, readers get the right bytes or none."""
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1e-6)
        cache = BlockCache(3 * BLOCK)
        whole = {image: content(image, 0, SIZE) for image in IMAGES}
        outcomes: Counter[str] = Counter()

        def read_once(random: Random) -> str:
            image = random.choice(IMAGES)
            offset = random.randrange(SIZE)
            length = min(random.choice([10, PAGE, 3 * PAGE, BLOCK]), SIZE - offset)
            try:
                data = read(cache, image, offset, length)
            except Exception as error:
                return repr(error)
            if data is None:
                return "none"
            return "right" if data == whole[image][offset : offset + length] else "wrong"

        def read_often(random: Random) -> None:
            found = Counter(read_once(random) for _ in range(3000))
            outcomes.update(found)

        readers = [
            Thread(target=read_often, args=(Random(seed),), daemon=True) for seed in range(3)
        ]
        for reader in readers:
            reader.start()
        random = Random(99)
        while any(reader.is_alive() for reader in readers):
            image = random.choice(IMAGES)
            block = random.randrange(5)
            end = min((block + 1) * BLOCK, SIZE)
            cache.store(image, block * BLOCK, whole[image][block * BLOCK : end])
        self.assertEqual(set(outcomes), {"none", "right"})
        self.assertGreater(cache.evictions, 0)
        self.assertLessEqual(cache.held, 3 * BLOCK)
