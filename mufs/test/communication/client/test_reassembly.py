"""Transfers reassembled from segments in any order."""

import random
import tracemalloc
from collections.abc import Iterable
from typing import Any

import numpy
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client import reassembly
from mufs.communication.client.reassembly import (
    MAX_KNOWN,
    MAX_ORPHANS,
    MAX_PARTIAL,
    Reassembly,
)
from mufs.test.support.properties import descriptors, examples, near_wrap, packets_of
from mufs.wire.pages import BLOCK
from mufs.wire.parity import MAX_COVERED, MAX_PARITY
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    SEGMENT,
    Descriptor,
    cut,
    cut_parity,
    number_count,
    parse,
    segment_count,
)

SIZE = 64
"""Bytes in a segment: few, so that small transfers have many."""


CONTENTS = st.one_of(
    st.binary(min_size=1, max_size=5 * SIZE + 1),
    st.integers(1, 4).map(lambda segments: bytes(range(SIZE)) * segments),
)
"""Bytes of a transfer: any, or such as fill whole segments."""


@frozen
class Transfer:
    """A transfer of some bytes and its packets."""

    descriptor: Descriptor
    sealed: bytes
    packets: list[bytes]

    @property
    def all(self) -> int:
        """The bitmap of all its segments."""
        return (1 << len(self.packets)) - 1

    @property
    def announcement(self) -> bytes:
        return self.descriptor.encode(ANNOUNCEMENT, SIZE)

    @property
    def completion(self) -> bytes:
        return self.descriptor.encode(COMPLETION, SIZE)

    @property
    def result(self) -> tuple[Descriptor, bytes]:
        """What reassembly returns when all of it came."""
        return self.descriptor, self.sealed + self.descriptor.tag


def make_transfer(number: int, first: int, sealed: bytes) -> Transfer:
    """A transfer of these bytes."""
    tag = number.to_bytes(16, "little")
    descriptor = Descriptor(number, first & 0xFFFFFFFF, 1, 2, 0, len(sealed), tag=tag)
    return Transfer(descriptor, sealed, packets_of(cut(descriptor.first, sealed, SIZE)))


def consecutive(first: int, contents: Iterable[bytes]) -> list[Transfer]:
    """Transfers as a server sends them, their segments numbered on."""
    transfers = []
    for number, sealed in enumerate(contents, 1):
        transfers.append(make_transfer(number, first, sealed))
        first += number_count(len(transfers[-1].packets))
    return transfers


def parity_of(transfer: Transfer, indices: Iterable[int]) -> list[bytes]:
    """Some parity segments of a transfer."""
    first = transfer.descriptor.first
    return [cut_parity(first, transfer.sealed, index, 1, SIZE).tobytes() for index in indices]


def take(
    reassembly: Reassembly, packets: "Iterable[bytes]", wanted: bool = True
) -> list[tuple[Descriptor, bytes]]:
    """Process a datagram of these packets; what it completed."""
    done = []
    for packet in parse(b"".join(packets), SIZE):
        if len(packet) == 2:
            done += reassembly.describe(packet[1], wanted)
        else:
            done += reassembly.segments(packet)
    return [(descriptor, bytes(sealed)) for descriptor, sealed in done]


class ReassemblyTests(SynchronousTestCase):
    """What packets complete, and what is missing."""

    def setUp(self) -> None:
        """Start with nothing."""
        self.reassembly = Reassembly(SIZE)

    @examples(250)
    @given(
        first=near_wrap(60),
        contents=st.lists(CONTENTS, min_size=1, max_size=4),
        data=st.data(),
    )
    def test_any_order(self, first: int, contents: list[bytes], data: st.DataObject) -> None:
        """
        In any order, with loss, doubling and interleaving, a transfer comes out once and right, or
        it is told exactly what it lacks; with that it comes out too.
        """
        reassembly = Reassembly(SIZE)
        transfers = consecutive(first, contents)
        sent: list[tuple[int, int | None, bytes]] = []
        for index, each in enumerate(transfers):
            sent.append((index, None, each.announcement))
            sent += [(index, place, packet) for place, packet in enumerate(each.packets)]
            sent.append((index, None, each.completion))
        in_order = list(range(len(sent)))
        order = data.draw(st.one_of(st.just(in_order), st.permutations(in_order)), "order")
        lost = data.draw(st.sets(st.sampled_from(order), max_size=len(sent) // 2), "lost")
        again = data.draw(st.lists(st.sampled_from(order), max_size=9), "doubled")
        arriving = [sent[i] for i in [*(i for i in order if i not in lost), *again]]

        done, described, came = [], set(), [0] * len(transfers)
        while arriving:
            together = data.draw(st.integers(1, 4), "datagram")
            datagram, arriving = arriving[:together], arriving[together:]
            done += take(reassembly, (packet for _, _, packet in datagram))
            for index, place, _ in datagram:
                if place is None:
                    described.add(index)
                else:
                    came[index] |= 1 << place
        whole = {i for i in described if came[i] == transfers[i].all}
        self.assertCountEqual(done, [transfers[i].result for i in whole])

        for index, each in enumerate(transfers):
            number, total = each.descriptor.transfer, each.descriptor.total
            first = each.descriptor.first
            missing = reassembly.missing(number, first, total)
            lacking = described - whole
            self.assertEqual(reassembly.is_partial(number), index in lacking)
            self.assertEqual(reassembly.is_complete(number), index in whole)
            self.assertEqual(missing, each.all if index in whole else each.all & ~came[index] or 1)
            if index not in whole:
                repair = [p for place, p in enumerate(each.packets) if missing >> place & 1]
                found = take(reassembly, [each.announcement, *repair, each.completion])
                self.assertEqual(found, [each.result])

    @examples(100)
    @given(first=near_wrap(60), contents=CONTENTS, data=st.data())
    def test_parity(self, first: int, contents: bytes, data: st.DataObject) -> None:
        """
        A transfer comes out as soon as there are as many segments and parity segments as it has
        segments, in any order; before, it lacks the difference.
        """
        transfer = make_transfer(1, first, contents)
        needed = len(transfer.packets)
        indices = data.draw(st.permutations(range(MAX_PARITY)), "parity")[: needed + 1]
        packets = [*enumerate(transfer.packets), *((-1, p) for p in parity_of(transfer, indices))]
        order = data.draw(st.permutations(packets), "order")
        announced = data.draw(st.booleans(), "announced")
        reassembly = Reassembly(SIZE)
        if announced:
            take(reassembly, [transfer.announcement])
        came = [order[i : i + 1] for i in range(needed)] if announced else [order[:needed]]
        have = 0
        for some in came:
            self.assertEqual(reassembly.missing(1, first, len(contents)).bit_count(), needed - have)
            self.assertEqual(reassembly.missing(1, first, len(contents)) & ~transfer.all, 0)
            have += len(some)
            last = [] if announced else [transfer.completion]
            done = take(reassembly, [packet for _, packet in some] + last)
            self.assertEqual(done, [transfer.result] if have == needed else [])
        self.assertTrue(reassembly.is_complete(1))
        self.assertEqual(take(reassembly, [packet for _, packet in order]), [])

    def test_groups(self) -> None:
        """A transfer of more segments than parity covers is restored group by group."""
        count = 2 * MAX_COVERED + 1
        contents = random.Random(count).randbytes(count * SIZE - 3)
        (transfer,) = consecutive(0xFFFFFFF0, [contents])
        lost = {0, 3, 4, count - 1}  # of groups 0, 0, 1 and 1
        left = [packet for i, packet in enumerate(transfer.packets) if i not in lost]
        take(self.reassembly, [transfer.announcement, *left, *parity_of(transfer, [0, 1, 4, 2])])
        missing = self.reassembly.missing(1, 0xFFFFFFF0, len(contents))
        self.assertEqual(missing.bit_count(), 1)
        self.assertEqual(missing & ~(1 << 0 | 1 << 3 | 1 << 4 | 1 << count - 1), 0)
        done = take(self.reassembly, parity_of(transfer, [3]))
        self.assertEqual(done, [transfer.result])

    def test_lacking_beside_parity(self) -> None:
        """No segment that came is asked for, and parity reduces the number of those that are."""
        transfer = make_transfer(1, 7, bytes(9 * SIZE))
        take(self.reassembly, [transfer.announcement, *transfer.packets[4:6]])
        take(self.reassembly, parity_of(transfer, [3, 30, 3]))
        missing = self.reassembly.missing(1, 7, 9 * SIZE)
        self.assertEqual(missing.bit_count(), 5)
        self.assertEqual(missing & 0b110000, 0)
        asked = [p for place, p in enumerate(transfer.packets) if missing >> place & 1]
        self.assertEqual(take(self.reassembly, asked), [transfer.result])

    def test_short_parity(self) -> None:
        """A parity segment is as long as a full segment; others are ignored."""
        transfer = make_transfer(1, 7, bytes(2 * SIZE))
        take(self.reassembly, [transfer.announcement])
        rows = numpy.zeros((1, SIZE - 1), numpy.uint8)
        self.assertEqual(self.reassembly.segments((7 + 2, SIZE - 1, rows)), [])
        self.assertEqual(self.reassembly.missing(1, 7, 2 * SIZE), 0b11)

    def test_orphans(self) -> None:
        """If the announcement is lost, the completion describes the segments before it."""
        (transfer,) = consecutive(0xFFFFFFFF, [bytes(range(200))])
        self.assertEqual(take(self.reassembly, transfer.packets), [])
        self.assertEqual(take(self.reassembly, [transfer.completion]), [transfer.result])

    def test_across_transfers(self) -> None:
        """A run of segments that belong to two transfers is split between them."""
        first, second = consecutive(0xFFFFFFFE, [bytes(3 * SIZE), b"\1" * (2 * SIZE)])
        transfers = [first, second]
        for each in transfers:
            take(self.reassembly, [each.announcement])
        parity = parity_of(first, range(MAX_PARITY))
        (run,) = parse(b"".join([*first.packets, *parity, *second.packets]), SIZE)
        assert len(run) == 3
        done = [(d, bytes(sealed)) for d, sealed in self.reassembly.segments(run)]
        self.assertEqual(done, [each.result for each in transfers])

    def test_begun_in_another(self) -> None:
        """A run that begins in an unknown transfer still serves the known ones."""
        for known_first in (True, False):
            reassembly = Reassembly(SIZE)
            first, second = consecutive(0xFFFFFFFE, [bytes(3 * SIZE), b"\1" * (2 * SIZE)])
            packets = [*first.packets, *second.packets]
            if known_first:
                take(reassembly, [second.announcement])
                self.assertEqual(take(reassembly, packets), [second.result])
            else:
                take(reassembly, packets)
                self.assertEqual(take(reassembly, [second.announcement]), [second.result])
            self.assertEqual(take(reassembly, [first.completion]), [first.result])

    def test_wanted_later(self) -> None:
        """A transfer that was ignored is received, once, when it is needed and comes again."""
        (transfer,) = consecutive(0, [b"x" * 5 * SIZE])
        packets = [transfer.announcement, *transfer.packets, transfer.completion]
        for wanted, done in ((False, []), (True, [transfer.result]), (True, []), (False, [])):
            self.assertEqual(take(self.reassembly, packets, wanted), done)

    def test_unwanted(self) -> None:
        """A transfer that is not needed is known, but neither kept nor reported as incomplete."""
        (transfer,) = consecutive(5, [bytes(300)])
        done = take(self.reassembly, [transfer.announcement, *transfer.packets], wanted=False)
        self.assertEqual(done, [])
        self.assertFalse(self.reassembly.is_partial(1))

    def test_wrong_length(self) -> None:
        """A segment that is too long or too short for its place is ignored."""
        (transfer,) = consecutive(5, [bytes(2 * SIZE + 10)])
        take(self.reassembly, [transfer.announcement])
        for number, length in [(5, SIZE - 1), (6, 1), (7, 9), (7, 11), (7, SIZE)]:
            rows = numpy.ones((1, length), numpy.uint8)
            self.assertEqual(self.reassembly.segments((number, length, rows)), [])
        self.assertEqual(self.reassembly.missing(1, 5, transfer.descriptor.total), 0b111)
        self.assertEqual(take(self.reassembly, transfer.packets), [transfer.result])

    def test_claim_missing(self) -> None:
        """What a transfer lacks is claimed once, and not again at each completion."""
        (transfer,) = consecutive(5, [bytes(3 * SIZE)])
        self.assertEqual(self.reassembly.claim_missing(1), 0)
        take(self.reassembly, [transfer.announcement, transfer.packets[1]])
        self.assertEqual(self.reassembly.claim_missing(1), 0b101)
        self.assertEqual(self.reassembly.claim_missing(1), 0)
        take(self.reassembly, transfer.packets)
        self.assertEqual(self.reassembly.claim_missing(1), 0)

    def test_has_passed(self) -> None:
        """Numbers have passed once a later transfer is known, in serial number arithmetic."""
        self.assertFalse(self.reassembly.has_passed(5))
        reassembly = Reassembly(SIZE)
        transfer = make_transfer(1, 3, b"some bytes")
        take(reassembly, transfer.packets)
        self.assertFalse(reassembly.has_passed(2))
        take(reassembly, [transfer.announcement])
        for number in (2, 0, 0xFFFFFFFF, 0x80000004):
            self.assertTrue(reassembly.has_passed(number))
        for number in (3, 4, 300, 0x7FFFFFFF):
            self.assertFalse(reassembly.has_passed(number))

    def test_asking_changes_nothing(self) -> None:
        """Asking about numbers has no effect."""
        take(self.reassembly, [make_transfer(1, 3, b"some bytes").announcement])
        self.assertFalse(self.reassembly.has_passed(300))
        self.assertFalse(self.reassembly.has_passed(200))

    def test_orphans_of_others(self) -> None:
        """Segments of an unknown transfer stay when another one is described."""
        first, second, third = consecutive(0xFFFFFFFE, [bytes(SIZE + 9)] * 3)
        for each in (third, first, second):
            take(self.reassembly, each.packets)
        for each in (second, third, first):
            self.assertEqual(take(self.reassembly, [each.completion]), [each.result])

    def test_forget(self) -> None:
        """A forgotten transfer can be received anew, also if it was complete."""
        (transfer,) = consecutive(5, [bytes(300)])
        packets = [transfer.announcement, *transfer.packets]
        self.assertEqual(take(self.reassembly, packets), [transfer.result])
        self.assertEqual(take(self.reassembly, packets), [])
        self.reassembly.forget(1)
        self.assertEqual(take(self.reassembly, packets), [transfer.result])
        self.reassembly.forget(99)

    @examples(100)
    @given(
        st.lists(
            st.one_of(
                descriptors(),
                descriptors().map(lambda d: evolve(d, transfer=d.transfer % 3, first=d.first % 9)),
                st.tuples(near_wrap(200), st.integers(1, SIZE), st.integers(1, 40)),
                st.integers(0, 2),
            ),
            max_size=40,
        )
    )
    def test_forged(self, packets: list[Any]) -> None:
        """Contradictory descriptors and arbitrary segments raise nothing."""
        reassembly = Reassembly(SIZE)
        for packet in packets:
            if isinstance(packet, Descriptor):
                reassembly.describe(packet, True)
                missing = reassembly.missing(packet.transfer, packet.first, packet.total)
                self.assertGreater(missing, 0)
            elif isinstance(packet, int):
                reassembly.forget(packet)
            else:
                number, length, count = packet
                rows = numpy.ones((count if length == SIZE else 1, length), numpy.uint8)
                reassembly.segments((number, length, rows))


class BoundTests(SynchronousTestCase):
    """Bounds on what is kept of incomplete transfers."""

    def setUp(self) -> None:
        """Start with nothing."""
        self.reassembly = Reassembly(SIZE)

    def test_partial(self) -> None:
        """The oldest incomplete transfers are dropped, and then lack all segments."""
        transfers = consecutive(0xFFFFFFF0, [bytes(2 * SIZE)] * (MAX_PARTIAL + 5))
        for each in transfers:
            take(self.reassembly, [each.announcement, each.packets[0]])
        held = [t for t in transfers if self.reassembly.is_partial(t.descriptor.transfer)]
        self.assertEqual(held, transfers[5:])
        self.assertEqual(self.reassembly.missing(1, 0xFFFFFFF0, 2 * SIZE), 0b11)
        self.assertEqual(self.reassembly.missing(6, 9, 2 * SIZE), 0b10)
        self.assertEqual(take(self.reassembly, transfers[0].packets), [])

    def test_partial_bytes(self) -> None:
        """The bytes of incomplete transfers are bounded, too."""
        size = 255 * SIZE
        self.patch(reassembly, "MAX_PARTIAL_BYTES", 10 * (size + 16))
        transfers = consecutive(0xFFFFFFF0, [bytes(size)] * 12)
        for each in transfers:
            take(self.reassembly, [each.announcement])
        numbers = [
            each.descriptor.transfer for each in transfers if take(self.reassembly, each.packets)
        ]
        self.assertEqual(numbers, list(range(3, 13)))
        for each in consecutive(0xFFFFFFF0, [bytes(size)] * 22)[12:]:
            take(self.reassembly, [each.announcement])
            self.assertTrue(self.reassembly.is_partial(each.descriptor.transfer))

    def test_partial_blocks(self) -> None:
        """As many incomplete transfers of a block are held as there may be of any size."""
        reassembly = Reassembly(SEGMENT)
        for number in range(1, MAX_PARTIAL + 1):
            first = number * number_count(segment_count(BLOCK, SEGMENT))
            reassembly.describe(Descriptor(number, first, 1, 1, 0, BLOCK), wanted=True)
        self.assertTrue(all(map(reassembly.is_partial, range(1, MAX_PARTIAL + 1))))

    def test_partial_parity(self) -> None:
        """Parity segments of incomplete transfers that are dropped are dropped with them."""
        transfers = consecutive(0xFFFFFFF0, [bytes(3 * SIZE)] * (MAX_PARTIAL + 1))
        first = transfers[0]
        take(self.reassembly, [first.announcement, first.packets[0], *parity_of(first, [0])])
        self.assertEqual(self.reassembly.lost(1), 1)
        for each in transfers[1:]:
            take(self.reassembly, [each.announcement])
        self.assertEqual(self.reassembly.lost(1), 2)

    def test_known(self) -> None:
        """What is older than all that is remembered is received only if it was asked for."""
        transfers = consecutive(0xFFFFFFF0, [b"some bytes"] * (MAX_KNOWN + 1))
        first, *others, last = transfers
        for each in [first, *others]:
            take(self.reassembly, [each.announcement, *each.packets])
        self.assertEqual(take(self.reassembly, [first.announcement, *first.packets]), [])
        take(self.reassembly, [last.announcement])
        self.assertEqual(take(self.reassembly, [first.announcement, *first.packets]), [])
        self.reassembly.expect(1)
        self.assertEqual(
            take(self.reassembly, [first.announcement, *first.packets]), [first.result]
        )

    def test_orphans(self) -> None:
        """The oldest segments without a known transfer are dropped."""
        transfers = consecutive(0xFFFFFFF0, [b"some bytes"] * (MAX_ORPHANS + 7))
        for each in transfers:
            take(self.reassembly, each.packets)
        done = [result for t in transfers for result in take(self.reassembly, [t.completion])]
        self.assertEqual(done, [each.result for each in transfers[7:]])

    def test_long_run_of_orphans(self) -> None:
        """The limit of orphans counts segments, not the runs that they came in."""
        transfers = consecutive(0, [bytes((MAX_ORPHANS // 2 + 1) * SIZE)] * 2)
        for each in transfers:
            take(self.reassembly, each.packets)
        done = [result for t in transfers for result in take(self.reassembly, [t.completion])]
        self.assertEqual(done, [transfers[1].result])

    def test_far_orphans(self) -> None:
        """Segments far away do not make the bitmap of a transfer large."""
        rows = numpy.zeros((1, SIZE), numpy.uint8)
        for number in (9 + (1 << 30), 9 + (1 << 31), 8, 10, 14):
            self.reassembly.segments((number, SIZE, rows))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertEqual(self.reassembly.missing(42, 9, 5 * SIZE), 0b11101)
        self.assertLess(tracemalloc.get_traced_memory()[1], 1 << 20)

    def test_missing_of_unknown(self) -> None:
        """Of an unknown transfer all segments are missing."""
        self.assertEqual(self.reassembly.missing(42, 9, 5 * SIZE + 1), 0b111111)
