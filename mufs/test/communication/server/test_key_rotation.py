"""When keys are replaced, and how much time clients have to learn the new ones."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.sent import SentTransfer, SentWindow
from mufs.communication.server.key_rotation import (
    KEY_DELIVERY_DELAY,
    MIN_KEY_LIFETIME,
    KeyRotation,
)
from mufs.test.support.doubles import ImageInMemory, make_sent
from mufs.wire.pages import PAGE
from mufs.wire.sealing import EPOCH_LIFETIME, Keys


class KeyRotationTests(SynchronousTestCase):
    """A rotation of keys that are new."""

    def setUp(self) -> None:
        """Record the epochs that are announced."""
        self.clock = Clock()
        self.keys = Keys(bytes(32), self.clock.seconds)
        self.window = SentWindow()
        self.announced: list[int] = []
        self.rotation = KeyRotation(self.keys, self.window, self.clock, announce=self.announce)

    def announce(self) -> None:
        """Record the keys in use."""
        self.announced.append(self.keys.epoch.number)

    def make_transfer(self) -> SentTransfer:
        """Make a transfer with the keys in use."""
        return make_sent(self.keys.next_transfer(PAGE), ImageInMemory(bytes(PAGE)), 0, PAGE)

    def test_kept(self) -> None:
        """Keys that are not worn out stay, and nothing has to wait for them."""
        self.clock.advance(EPOCH_LIFETIME - 1)
        self.successResultOf(self.rotation.prepare())
        self.assertEqual(self.announced, [])

    def test_worn_out(self) -> None:
        """Worn-out keys are replaced; sealing waits until clients have the new ones."""
        self.clock.advance(EPOCH_LIFETIME)
        preparing = self.rotation.prepare()
        self.assertEqual(self.announced, [1])
        self.clock.advance(KEY_DELIVERY_DELAY / 2)
        self.assertNoResult(preparing)
        self.clock.advance(KEY_DELIVERY_DELAY / 2)
        self.successResultOf(preparing)
        self.successResultOf(self.rotation.prepare())

    def test_transfers(self) -> None:
        """Transfers sealed with the old keys are dropped, and are not current."""
        transfer = self.make_transfer()
        self.window.add(transfer)
        self.assertTrue(self.rotation.is_current(transfer))
        self.clock.advance(EPOCH_LIFETIME)
        self.rotation.prepare()
        self.assertFalse(self.rotation.is_current(transfer))
        self.assertIsNone(self.window.get(transfer.descriptor.transfer))
        self.assertTrue(self.rotation.is_current(self.make_transfer()))

    def test_expelled(self) -> None:
        """Keys are replaced once for all clients that are expelled in their minimum lifetime."""
        self.clock.advance(MIN_KEY_LIFETIME / 2)
        self.rotation.expelled()
        self.rotation.expelled()
        self.clock.advance(MIN_KEY_LIFETIME / 2 - 0.01)
        self.assertEqual(self.announced, [])
        self.clock.advance(0.02)
        self.assertEqual(self.announced, [1])
        self.rotation.expelled()
        self.clock.advance(MIN_KEY_LIFETIME)
        self.assertEqual(self.announced, [1, 2])

    def test_expelled_late(self) -> None:
        """Keys older than their minimum lifetime are replaced at once."""
        self.clock.advance(MIN_KEY_LIFETIME)
        self.rotation.expelled()
        self.clock.advance(0)
        self.assertEqual(self.announced, [1])

    def test_worn_out_meanwhile(self) -> None:
        """Keys that wear out before they are replaced for an expelled client change once."""
        self.clock.advance(EPOCH_LIFETIME)
        self.rotation.expelled()
        self.rotation.prepare()
        self.clock.advance(MIN_KEY_LIFETIME)
        self.assertEqual(self.announced, [1])

    def test_stop(self) -> None:
        """Once stopped, no keys are replaced."""
        self.rotation.expelled()
        self.rotation.stop()
        self.clock.advance(MIN_KEY_LIFETIME)
        self.assertEqual(self.announced, [])
