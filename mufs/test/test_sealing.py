"""How transfers are sealed."""

from typing import Any

from attrs import evolve
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.properties import descriptors, examples
from mufs.wire.sealing import Keys, derive_key, seal, unseal
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
KEY = bytes.fromhex("d8f0c55c162504fa1d879533eaf33f9f")
SEALED = bytes.fromhex("c8f61b1582cc23912ee71c64ccb14fc32633590e")
TAG = bytes.fromhex("e60db657e83355cda8f0c3db952502c4")


class SealingTests(SynchronousTestCase):
    """What can be opened, and what cannot."""

    def setUp(self) -> None:
        """Have the key of one generation."""
        self.cipher = AESGCM(KEY)

    def test_vector(self) -> None:
        """Key, sealed bytes and tag are these: HKDF-SHA256, then AES-128-GCM."""
        self.assertEqual(
            derive_key(bytes(range(32)), DESCRIPTOR.image, DESCRIPTOR.generation), KEY
        )
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
        """Under the key of another generation, image or run nothing opens."""
        keys, other = Keys(bytes(range(32))), Keys(bytes(32))
        image, generation = DESCRIPTOR.image, DESCRIPTOR.generation
        self.assertEqual(keys.key(image, generation), KEY)
        self.assertEqual(
            unseal(keys.cipher(image, generation), DESCRIPTOR, SEALED + TAG), DATA
        )
        for cipher in (
            keys.cipher(image, generation + 1),
            keys.cipher(image + 1, generation),
            keys.cipher(generation, image),
            other.cipher(image, generation),
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
