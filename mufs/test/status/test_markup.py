"""Markup."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.status.markup import Markup, element, join
from mufs.test.support.properties import examples
from mufs.units import shown


class Read(HTMLParser):
    """Reads markup as a browser does."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Text."""
        self.text += data


class MarkupTests(SynchronousTestCase):
    """Text in markup."""

    @examples(200)
    @given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
    def test_any_text(self, text: str) -> None:
        """Any text is read as that text again, in content and in an attribute."""
        read = Read(element("p", text, title=text))
        self.assertEqual(read.tags, [("p", {"title": text})])
        self.assertEqual(read.text, text)

    def test_nested(self) -> None:
        """Markup is not escaped again; an attribute that is C{None} is left out."""
        inner = element("b", "<", class_="x", data_label="&", title=None)
        self.assertEqual(inner, '<b class="x" data-label="&amp;">&lt;</b>')
        self.assertEqual(join(inner, ">"), Markup(inner + "&gt;"))

    @examples(200)
    @given(st.one_of(st.binary(), st.text()))
    def test_any_name(self, name: Any) -> None:
        """A name is shown in one line of printable text."""
        text = shown(name)
        self.assertTrue(text.isprintable())
        text.encode()

    def test_names(self) -> None:
        """Printable characters are shown as they are, all others by their numbers."""
        names: list[tuple[bytes | str, str]] = [
            (b"disk.img", "disk.img"),
            ("снимок <&> \\".encode(), "снимок <&> \\"),
            (b"\xff\n\x1b[1m", r"\xff\n\x1b[1m"),
            ("\N{RIGHT-TO-LEFT OVERRIDE}gmi\u2028", r"\u202egmi\u2028"),
        ]
        for name, text in names:
            self.assertEqual(shown(name), text)
