"""docs/architecture.md and docs/decisions/ name the modules that there are."""

import re
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs

ROOT = Path(mufs.__file__).parents[1]
SECTION = re.compile(r"^### (mufs/\S*)$(.*?)(?=^#)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (`.*?`) \|", re.MULTILINE)
FILE = re.compile(r"`(mufs/[\w/]+\.\w+)`")
CLASS = re.compile(r"`(\w+)` in `(mufs/[\w/]+\.py)`")


def table_files(document: str) -> set[str]:
    """The files that the tables of the modules name, as paths from the root of the project."""
    return {
        folder + name
        for folder, table in SECTION.findall(document)
        for row in ROW.findall(table)
        for name in re.findall(r"`(.+?)`", row)
    }


def modules() -> set[str]:
    """The modules of mUFS but its tests and the files that only mark packages."""
    found = (path.relative_to(ROOT) for path in (ROOT / "mufs").rglob("*.py"))
    return {str(p) for p in found if p.parts[1] != "test" and p.name != "__init__.py"}


class DocumentTests(SynchronousTestCase):
    """The documents beside the code."""

    def setUp(self) -> None:
        if not (ROOT / "docs").is_dir():
            raise SkipTest("the documents are not installed")

    def test_tables(self) -> None:
        """The tables name each module, and no file that does not exist."""
        named = table_files((ROOT / "docs/architecture.md").read_text())
        self.assertEqual(modules() - named, set())
        self.assertEqual({name for name in named if not (ROOT / name).is_file()}, set())

    def test_files(self) -> None:
        """Each file of mUFS that a document names by its path exists."""
        pages = [ROOT / "docs/architecture.md", *(ROOT / "docs/decisions").glob("*.md")]
        self.assertGreater(len(pages), 1)
        named = {(page.name, name) for page in pages for name in FILE.findall(page.read_text())}
        self.assertEqual({n for n in named if not (ROOT / n[1]).is_file()}, set())

    def test_classes(self) -> None:
        """Each class that architecture.md places in a file is defined there."""
        placed = CLASS.findall((ROOT / "docs/architecture.md").read_text())
        self.assertGreater(len(placed), 5)
        for name, file in placed:
            self.assertRegex((ROOT / file).read_text(), rf"(?m)^class {name}\b", name)
