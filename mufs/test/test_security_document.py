"""docs/security.md names tests that there are."""

import re
from importlib import import_module
from pathlib import Path

from twisted.python.reflect import namedAny
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs

DOCUMENT = Path(mufs.__file__).parents[1] / "docs/security.md"
NAME = re.compile(r"`((?:[a-z]+\.)*test_\w+)((?:\.\w+)*)`")


class SecurityDocumentTests(SynchronousTestCase):
    """The tests that the document refers to."""

    def test_names(self) -> None:
        """Each module, class and method that it names exists."""
        if not DOCUMENT.is_file():
            raise SkipTest("the documents are not installed")
        names = NAME.findall(DOCUMENT.read_text())
        self.assertGreater(len(names), 50)
        for module, inside in names:
            import_module(f"mufs.test.{module}")
            namedAny(f"mufs.test.{module}{inside}")
