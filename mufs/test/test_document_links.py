"""The links between the documents of the repository; `make docs` checks only those below docs/."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs

CHECKOUT = Path(mufs.__file__).parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: str) -> set[str]:
    """What a link may name on a page: its headings, as GitHub and MyST derive anchors from them."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(document: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    text = document.read_text(encoding="utf-8")
    found = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (
            anchor and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            found.append(link)
    return found


class LinkTests(SynchronousTestCase):
    """All Markdown files of the checkout."""

    def documents(self) -> list[Path]:
        """README.md and the others, without what tools have made."""
        if not (CHECKOUT / "README.md").exists():
            raise SkipTest("needs the checkout")
        below = [
            path
            for folder in ("docs", "bench", "findings", "newsfragments")
            for path in (CHECKOUT / folder).rglob("*.md")
        ]
        return [*CHECKOUT.glob("*.md"), *below]

    def test_links(self) -> None:
        """Each relative link leads to a file, and to a heading of it if it names one."""
        found = {str(path.relative_to(CHECKOUT)): broken(path) for path in self.documents()}
        self.assertEqual({name: links for name, links in found.items() if links}, {})

    def test_broken(self) -> None:
        """A link to a file or a heading that is not there is found."""
        page = Path(self.mktemp())
        page.write_text(
            "# One (two)\n\n[a](#one-two) [b](#three) [c](no.md) [d](https://x.example)\n"
        )
        self.assertEqual(broken(page), ["#three", "no.md"])
