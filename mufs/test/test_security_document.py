"""docs/security.md names tests that there are."""

import re
from pathlib import Path

from twisted.python.reflect import namedAny, namedModule
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs

DOCUMENT = Path(mufs.__file__).parents[1] / "docs/security.md"
NAME = re.compile(r"`((?:[a-z]+\.)*test_\w+)((?:\.\w+)*)`")


def exists(module: str, inside: str) -> bool:
    """Whether a module of the tests, and a class or method in it, can be found."""
    try:
        namedModule(f"mufs.test.{module}")
        namedAny(f"mufs.test.{module}{inside}")
    except (ImportError, AttributeError):
        return False
    return True


class SecurityDocumentTests(SynchronousTestCase):
    """The tests that the document refers to."""

    def test_names(self) -> None:
        """Each module, class and method that it names exists."""
        if not DOCUMENT.is_file():
            raise SkipTest("the documents are not installed")
        names = NAME.findall(DOCUMENT.read_text())
        self.assertGreater(len(names), 50)
        self.assertEqual({m + inside for m, inside in names if not exists(m, inside)}, set())
