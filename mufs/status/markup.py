"""HTML and SVG that cannot be broken by what stands in it."""

from html import escape


class Markup(str):
    """Text that is HTML already; all other text becomes it by being escaped."""


def element(name: str, *content: object, **attributes: object) -> Markup:
    """
    An element with its content.

    @param attributes: with a trailing C{_} where Python has the word; C{None} leaves one out.
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{told}>{join(*content)}</{name}>")


def join(*content: object) -> Markup:
    """Pieces one after the other."""
    return Markup(
        "".join(each if isinstance(each, Markup) else escape(str(each)) for each in content)
    )


def shown(name: str | bytes) -> str:
    """
    A name as it can be shown in one line: what does not print, or is not UTF-8, as C{\\x..}. So
    no name changes how what stands beside it is read.
    """
    text = name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )
