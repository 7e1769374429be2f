"""How transfers are sealed."""

from typing import Any

from attrs import evolve
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.properties import descriptors, examples
from mufs.wire.pages import BLOCK, PAGE
from mufs.wire.sealing import (
    EPOCH_LIFETIME,
    MAX_EPOCH_BYTES,
    Epoch,
    Keys,
    derive_key,
    seal,
    unseal,
)
from mufs.wire.segments import Descriptor

DESCRIPTOR = Descriptor(
    transfer=0x0102030405060708,
    first=0xFFFFFFFE,
    image=0x1112131415161718,
    generation=0x2122232425262728,
    offset=0x0000000500020000,
    total=20,
)
DATA = b"twenty bytes of data"
GENERATION_KEY = bytes.fromhex("d8f0c55c162504fa1d879533eaf33f9f")
SECRET = bytes(range(0x40, 0x60))
KEY = bytes.fromhex("743003ecca9b816bb92a75aae0ff0575")
SEALED = bytes.fromhex("961d3053a5a630ffc978f1c20358cfa21a7dd726")
TAG = bytes.fromhex("6ae3a34b686e5dbc7cb07bdee7c5cbdd")


class SealingTests(SynchronousTestCase):
    """What can be opened, and what cannot."""

    def setUp(self) -> None:
        """Have the key of one generation."""
        self.cipher = AESGCM(KEY)

    def test_vector(self) -> None:
        """Keys, sealed bytes and tag are these: HKDF-SHA256 twice, then AES-128-GCM."""
        self.assertEqual(
            derive_key(bytes(range(32)), DESCRIPTOR.image, DESCRIPTOR.generation), GENERATION_KEY
        )
        self.assertEqual(Epoch(0, SECRET).transfer_key(GENERATION_KEY), KEY)
        self.assertEqual(seal(self.cipher, DESCRIPTOR, DATA), (SEALED, TAG))
        self.assertEqual(unseal(self.cipher, DESCRIPTOR, SEALED + TAG), DATA)

    @examples(50)
    @given(descriptors(), st.binary(max_size=3000))
    def test_round_trip(self, descriptor: Descriptor, data: bytes) -> None:
        """Sealed bytes are as many as there were, and open under the same key and descriptor."""
        view, tag = seal(self.cipher, descriptor, data)
        sealed = bytes(view)
        self.assertEqual((len(sealed), len(tag)), (len(data), 16))
        self.assertEqual(unseal(self.cipher, descriptor, bytearray(sealed + tag)), data)
        memory = memoryview(bytearray(sealed + tag))
        self.assertEqual(unseal(self.cipher, descriptor, memory, memory), data)

    def test_flipped_bit(self) -> None:
        """With any single bit of bytes or tag flipped nothing opens."""
        for bit in range(8 * len(SEALED + TAG)):
            wrong = bytearray(SEALED + TAG)
            wrong[bit // 8] ^= 1 << bit % 8
            self.assertIsNone(unseal(self.cipher, DESCRIPTOR, wrong))

    def test_other_descriptor(self) -> None:
        """With any field of the descriptor another nothing opens."""
        for name in ("transfer", "first", "image", "generation", "offset", "total"):
            for change in (1, -1):
                changes: dict[str, Any] = {name: getattr(DESCRIPTOR, name) + change}
                other = evolve(DESCRIPTOR, **changes)
                self.assertIsNone(unseal(self.cipher, other, SEALED + TAG))

    def test_other_key(self) -> None:
        """Under the key of another generation, image, run or epoch nothing opens."""
        keys, other, later = [
            Keys(secret, random=lambda size: bytes(range(0x40, 0x40 + size)))
            for secret in (bytes(range(32)), bytes(32), bytes(range(32)))
        ]
        later._random = bytes
        later.replace()
        image, generation = DESCRIPTOR.image, DESCRIPTOR.generation
        self.assertEqual(keys.key(image, generation), GENERATION_KEY)
        self.assertEqual(unseal(keys.cipher(image, generation), DESCRIPTOR, SEALED + TAG), DATA)
        for cipher in (
            keys.cipher(image, generation + 1),
            keys.cipher(image + 1, generation),
            keys.cipher(generation, image),
            other.cipher(image, generation),
            later.cipher(image, generation),
            AESGCM(GENERATION_KEY),
        ):
            self.assertIsNone(unseal(cipher, DESCRIPTOR, SEALED + TAG))

    @examples(100)
    @given(descriptors(), st.binary(max_size=60))
    def test_any_bytes(self, descriptor: Descriptor, sealed: bytes) -> None:
        """Bytes that nobody sealed do not open, however few they are."""
        self.assertIsNone(unseal(self.cipher, descriptor, sealed))

    def test_nonce(self) -> None:
        """The same bytes in two transfers are sealed differently."""
        other = evolve(DESCRIPTOR, transfer=DESCRIPTOR.transfer + 1)
        self.assertNotEqual(seal(self.cipher, other, DATA)[0], SEALED)


class EpochTests(SynchronousTestCase):
    """When keys are replaced, and what no two transfers have in common."""

    def setUp(self) -> None:
        """The keys of a server that has just started."""
        self.now = 0.0
        self.keys = Keys(bytes(32), lambda: self.now)

    def test_time(self) -> None:
        """Keys are replaced after an hour, and not before."""
        self.now = EPOCH_LIFETIME - 1
        self.assertIsNone(self.keys.due())
        self.now = EPOCH_LIFETIME
        self.assertIn("an hour", self.keys.due() or "")
        self.keys.replace()
        self.assertIsNone(self.keys.due())

    def test_volume(self) -> None:
        """They are after 2**36 bytes, of which a short transfer counts for a page."""
        for length, count in ((BLOCK, MAX_EPOCH_BYTES // BLOCK), (1, MAX_EPOCH_BYTES // PAGE)):
            self.assertLess(count, 1 << 32)
            self.keys._sealed = MAX_EPOCH_BYTES - MAX_EPOCH_BYTES // count
            self.assertIsNone(self.keys.due())
            self.keys.next_transfer(length)
            self.assertIn("64 GiB", self.keys.due() or "")
            self.keys.replace()
            self.assertIsNone(self.keys.due())

    def test_limits(self) -> None:
        """That is below what RFC 8446 and SP 800-38D allow for a key, of bytes and of nonces."""
        self.assertLess(MAX_EPOCH_BYTES, 2**38.5)
        self.assertLess(MAX_EPOCH_BYTES // PAGE, 1 << 32)

    def test_nonces(self) -> None:
        """No two transfers have key and number in common: in no epoch, image or run."""
        used = set()
        for run in (bytes(32), bytes(32), bytes(range(32))):
            keys = Keys(run)
            for _ in range(5):
                for image, generation in ((1, 1), (1, 2), (2, 1), (1, 1)):
                    key = keys.epoch.transfer_key(keys.key(image, generation))
                    for _ in range(3):
                        used.add((key, keys.next_transfer(PAGE)))
                keys.replace()
        self.assertEqual(len(used), 3 * 5 * 4 * 3)
        self.assertEqual(len({key for key, _ in used}), 3 * 5 * 3)

    def test_numbers(self) -> None:
        """Numbers of transfers rise, from epoch to epoch too, and tell their epoch."""
        numbers = []
        for epoch in range(3):
            for _ in range(2):
                numbers.append(self.keys.next_transfer(PAGE))
                self.assertEqual(evolve(DESCRIPTOR, transfer=numbers[-1]).epoch, epoch)
            self.keys.replace()
        self.assertEqual(numbers, sorted(set(numbers)))
