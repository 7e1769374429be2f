"""How quantities are written for people."""


def format_bytes(count: float) -> str:
    """A number of bytes, in units of powers of 1024."""
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if count >= 1024**power:
            return f"{count / 1024**power:.1f} {unit}"
    return f"{count:.0f} B"
