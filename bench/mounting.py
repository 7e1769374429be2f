"""What a mount gives to one host."""

from collections.abc import Iterator

from bench.measure import Row
from bench.systems import Image, System


def mount(row: Row, system: type[System], given: Image) -> Iterator[Row]:
    """One host mounts."""
    yield from ()
