"""HTML and SVG in which all text is escaped."""

from html import escape


class Markup(str):
    """Text that is HTML already; all other text is escaped where it is put into HTML."""


def element(name: str, *content: object, **attributes: object) -> Markup:
    """
    An element with its content.

    @param attributes: names that are keywords of Python end in C{_}; C{None} leaves one out.
    """
    shown_attributes = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{shown_attributes}>{join(*content)}</{name}>")


def join(*content: object) -> Markup:
    """The content, one part after the other."""
    return Markup(
        "".join(each if isinstance(each, Markup) else escape(str(each)) for each in content)
    )
