"""
How a transfer is sealed: AES-GCM (NIST SP 800-38D) under the key of the image's generation.

The keys derive from a secret that a server makes anew each time it starts (HKDF, RFC 5869);
the nonce is the number of the transfer, so no nonce is used twice under a key.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mufs.wire.segments import TAG_SIZE, Descriptor

MAX_CIPHERS = 4096


def derive_key(secret: bytes, image: int, generation: int) -> bytes:
    """The 16 bytes that seal the transfers of one generation of an image."""
    info = b"mufs image" + image.to_bytes(8, "big") + generation.to_bytes(8, "big")
    return HKDF(SHA256(), 16, None, info).derive(secret)


class Keys:
    """The keys of a server's run: one for each generation of an image."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._ciphers: dict[tuple[int, int], AESGCM] = {}

    def key(self, image: int, generation: int) -> bytes:
        """What a client needs to open transfers of that generation."""
        return derive_key(self._secret, image, generation)

    def cipher(self, image: int, generation: int) -> AESGCM:
        """What seals them."""
        cipher = self._ciphers.get((image, generation))
        if cipher is None:
            if len(self._ciphers) >= MAX_CIPHERS:
                self._ciphers.clear()
            cipher = AESGCM(self.key(image, generation))
            self._ciphers[image, generation] = cipher
        return cipher


def seal(cipher: AESGCM, descriptor: Descriptor, data: bytes) -> tuple[memoryview, bytes]:
    """The sealed bytes, as many as C{data} has, and the authentication tag."""
    sealed = cipher.encrypt(_nonce(descriptor), data, descriptor.bound())
    return memoryview(sealed)[:-TAG_SIZE], sealed[-TAG_SIZE:]


def unseal(cipher: AESGCM, descriptor: Descriptor, sealed: bytes | bytearray) -> bytes | None:
    """
    The reverse of L{seal}.

    @param sealed: the bytes received, followed by the tag.
    @return: the file bytes, or C{None} when they are not what the server sealed.
    """
    try:
        return cipher.decrypt(_nonce(descriptor), sealed, descriptor.bound())
    except InvalidTag:
        return None


def _nonce(descriptor: Descriptor) -> bytes:
    return descriptor.transfer.to_bytes(12, "big")
