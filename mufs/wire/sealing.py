"""
Authenticated encryption of transfers: AES-GCM (NIST SP 800-38D), with keys that are replaced
periodically.

The key of a transfer is derived (HKDF, RFC 5869) from the key of the image's generation, sent in
the reply to OPEN, and the secret of the epoch, sent in KEY: decryption requires both. The nonce is
the number of the transfer. Each epoch has its own numbers and secret, so no nonce is used twice
with a key. docs/protocol.md section 5.
"""

import os
from collections.abc import Callable

import numpy
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mufs.wire.pages import PAGE, ImageKey
from mufs.wire.segments import TAG_SIZE, Descriptor

SECRET_SIZE = 32

MAX_CIPHERS = 4096

EPOCH_LIFETIME = 3600.0
"""Seconds after which keys are replaced. A client that has left can decrypt until then."""

MAX_EPOCH_BYTES = 1 << 36
"""
Bytes sealed after which keys are replaced. RFC 8446 section 5.5 allows 2**38.5 for a key of
AES-GCM; this bounds all images together. Each transfer counts as at least a page, so an epoch has
at most 2**24 of them, of the 2**32 that its numbers allow.
"""


def _derive(secret: bytes, length: int, info: bytes) -> bytes:
    return HKDF(SHA256(), length, None, info).derive(secret)


def derive_key(secret: bytes, image: int, generation: int) -> bytes:
    """The key, of 16 bytes, of one generation of an image in a run of the server."""
    info = b"mufs image" + image.to_bytes(8, "big") + generation.to_bytes(8, "big")
    return _derive(secret, 16, info)


class Epoch:
    """
    The keys of an epoch, the same for server and clients.

    @ivar number: the high half of the numbers of its transfers.
    @ivar control: the key for the MACs of announcements and completions.
    """

    def __init__(self, number: int, secret: bytes) -> None:
        """@param secret: random bytes, sent to all clients."""
        self.number = number
        self.secret = secret
        self.control = _derive(secret, 32, b"mufs control")
        self._ciphers: dict[bytes, AESGCM] = {}

    def transfer_key(self, key: bytes) -> bytes:
        """The key, of 16 bytes, of the transfers of the generation with this key."""
        return _derive(key + self.secret, 16, b"mufs transfer")

    def cipher(self, key: bytes) -> AESGCM:
        """The cipher of the transfers of the generation with this key."""
        cipher = self._ciphers.get(key)
        if cipher is None:
            if len(self._ciphers) >= MAX_CIPHERS:
                self._ciphers.clear()
            cipher = self._ciphers[key] = AESGCM(self.transfer_key(key))
        return cipher


class Keys:
    """
    The keys of a run of the server.

    @ivar epoch: the current ones.
    @ivar since: when the epoch began, in seconds of C{seconds}.
    """

    def __init__(
        self,
        secret: bytes,
        seconds: Callable[[], float] = lambda: 0.0,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """
        @param secret: random bytes of this run, from which the keys of generations are derived.
        @param seconds: a monotonic clock.
        @param random: returns as many cryptographically random bytes as requested.
        """
        self._secret = secret
        self._seconds = seconds
        self._random = random
        self._keys: dict[ImageKey, bytes] = {}
        self._number = -1
        self.replace()

    def key(self, image: int, generation: int) -> bytes:
        """The key of a generation, sent in the reply to OPEN."""
        key = self._keys.get((image, generation))
        if key is None:
            if len(self._keys) >= MAX_CIPHERS:
                self._keys.clear()
            key = self._keys[image, generation] = derive_key(self._secret, image, generation)
        return key

    def replace_secret(self) -> None:
        """Give all generations other keys, of which no client has one yet."""
        self._secret = self._random(SECRET_SIZE)
        self._keys.clear()

    def cipher(self, image: int, generation: int) -> AESGCM:
        """The current cipher of the transfers of a generation."""
        return self.epoch.cipher(self.key(image, generation))

    def next_transfer(self, length: int) -> int:
        """The number of the next transfer, which has C{length} bytes."""
        self._sealed += max(length, PAGE)
        self._transfers += 1
        return self.epoch.number << 32 | self._transfers

    def due(self) -> str | None:
        """Why the keys must be replaced before the next transfer; C{None} if they need not be."""
        if self._seconds() - self.since >= EPOCH_LIFETIME:
            return "those before were in use for an hour"
        if self._sealed >= MAX_EPOCH_BYTES:
            return "those before sealed 64 GiB"
        return None

    def replace(self) -> None:
        """Begin the next epoch."""
        self._number += 1
        self.epoch = Epoch(self._number, self._random(SECRET_SIZE))
        self.since = self._seconds()
        self._sealed = self._transfers = 0


def seal(
    cipher: AESGCM, descriptor: Descriptor, data: bytes | memoryview
) -> tuple[memoryview, bytes]:
    """The encrypted bytes, as many as C{data} has, in new memory, and the authentication tag."""
    sealed = numpy.empty(len(data) + TAG_SIZE, numpy.uint8).data
    cipher.encrypt_into(_nonce(descriptor), data, descriptor.bound(), sealed)
    return sealed[:-TAG_SIZE], sealed[-TAG_SIZE:].tobytes()


def unseal(
    cipher: AESGCM,
    descriptor: Descriptor,
    sealed: bytes | bytearray | memoryview,
    target: memoryview | None = None,
) -> memoryview | None:
    """
    The reverse of L{seal}.

    @param sealed: the bytes received, followed by the tag.
    @param target: memory for the file bytes; by default new memory. It is overwritten in any case.
        It may be that of C{sealed}: the cipher works in place.
    @return: the file bytes, or C{None} if they are not authentic.
    """
    length = max(0, len(sealed) - TAG_SIZE)
    data = memoryview(bytearray(length)) if target is None else target[:length]
    try:
        cipher.decrypt_into(_nonce(descriptor), sealed, descriptor.bound(), data)
    except InvalidTag:
        return None
    return data


def _nonce(descriptor: Descriptor) -> bytes:
    return descriptor.transfer.to_bytes(12, "big")
