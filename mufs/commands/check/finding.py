"""Findings of a check: what was examined, the result, and a remedy."""

import textwrap
from enum import Enum

from attrs import frozen

WIDTH = 80
"""Columns."""


class Level(Enum):
    """The severity of a finding; the words are those of the output."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@frozen
class Finding:
    """
    The result of one check.

    @ivar what: what was checked, in a few words.
    @ivar figure: what was found.
    @ivar remedy: what to do, in lines; empty if all is well.
    @ivar commands: shell commands for it.
    """

    level: Level
    what: str
    figure: str
    remedy: str = ""
    commands: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The text for a terminal. Commands are not wrapped, so that they can be copied."""
        head = f"{self.level.value:<8} {self.what:<15} "
        found = _wrap(self.figure, head)
        for number, part in enumerate(self.remedy.split("\n") if self.remedy else ()):
            found += _wrap(part, " " * 9 + ("   " if number else "-> "))
        return found + [" " * 14 + command for command in self.commands]

    def fields(self) -> dict[str, object]:
        """The fields for JSON."""
        return {
            "level": self.level.value,
            "what": self.what,
            "figure": self.figure,
            "remedy": self.remedy,
            "commands": list(self.commands),
        }


def ok(what: str, figure: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, what, figure)


def warning(what: str, figure: str, remedy: str, *commands: str) -> Finding:
    """It works, but not well, or not for long."""
    return Finding(Level.WARNING, what, figure, remedy, commands)


def problem(what: str, figure: str, remedy: str, *commands: str) -> Finding:
    """It does not work."""
    return Finding(Level.PROBLEM, what, figure, remedy, commands)


def _wrap(text: str, head: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
