"""How quantities and names are written for people."""


def format_bytes(count: float) -> str:
    """A number of bytes, in units of powers of 1024."""
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if count >= 1024**power:
            return f"{count / 1024**power:.1f} {unit}"
    return f"{count:.0f} B"


def format_duration(seconds: float) -> str:
    """A duration, in its largest unit and the next smaller one."""
    left = int(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for number, (unit, size) in enumerate(units[:-1]):
        if left >= size:
            smaller, smaller_size = units[number + 1]
            return f"{left // size} {unit} {left % size // smaller_size} {smaller}"
    return f"{left} s"


def shown(name: str | bytes) -> str:
    """
    A name in one line, with C{\\x..} in place of all that is not printable or not UTF-8, so that no
    name changes how the text beside it reads.
    """
    text = name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )
