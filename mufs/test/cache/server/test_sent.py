"""The transfers sent last."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.sent import TRANSFER_OVERHEAD, SentTransfer, SentWindow
from mufs.test.support.doubles import ImageInMemory, make_sent
from mufs.test.support.properties import examples
from mufs.wire.pages import EXTENT, PAGE

IMAGE = ImageInMemory(bytes(4 * EXTENT))


class SentWindowTests(SynchronousTestCase):
    """What is kept, and for how long."""

    @examples(150)
    @given(
        st.integers(0, 2_000_000),
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, EXTENT)), max_size=12),
    )
    def test_bound(self, limit: int, sizes: list[tuple[int, int]]) -> None:
        """The last transfers up to the limit are kept, by number and by extent."""
        window = SentWindow(limit)
        sent: list[SentTransfer] = []
        for number, (extent, length) in enumerate(sizes, 1):
            sent.append(make_sent(number, IMAGE, extent * EXTENT, length))
            window.add(sent[-1])
            kept: list[SentTransfer] = []
            for transfer in reversed(sent):
                if sum(t.descriptor.total + TRANSFER_OVERHEAD for t in [*kept, transfer]) > limit:
                    break
                kept.append(transfer)
            found = [window.get(t.descriptor.transfer) for t in sent]
            self.assertEqual(found, [t if t in kept else None for t in sent])
            for each in range(4):
                newest_first = [t for t in kept if t.extent == (1, 1, each)]
                self.assertEqual(list(window.of_extent((1, 1, each))), newest_first)

    def test_unknown(self) -> None:
        """Numbers and extents that were never sent are not found."""
        window = SentWindow()
        window.add(make_sent(1, IMAGE, 0, EXTENT))
        self.assertIsNone(window.get(2))
        for extent in [(1, 1, 1), (1, 2, 0), (2, 1, 0)]:
            self.assertEqual(list(window.of_extent(extent)), [])

    def test_pages(self) -> None:
        """A transfer knows which pages of its extent it carries, even if the last one is short."""
        transfer = make_sent(1, IMAGE, EXTENT + 3 * PAGE, PAGE + 1)
        self.assertEqual((transfer.extent, transfer.pages), ((1, 1, 1), 0b11000))
