"""The parser of the command C{mufs}: one line that says what is wrong, with a right example."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from mufs.options import one_line, typed


class Parser(argparse.ArgumentParser):
    """Of a command or of a subcommand."""

    def __init__(self, *args: Any, example: str = "", **more: Any) -> None:
        """@param example: a right command line of this command."""
        super().__init__(*args, **{"epilog": f"Example: {example}", **more})
        self.example = example
        self.set_defaults(parser=self)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As the original, but the subcommand tells what it does not know."""
        given, rest = self.parse_known_args(args, namespace)
        if rest:
            parser: Parser = given.parser
            near = get_close_matches(rest[0].partition("=")[0], parser._option_string_actions, 1)
            parser.error(
                f"{typed(rest[0])} is unknown here" + "".join(f", but not {each}" for each in near)
            )
        return given

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line."""
        self._exit(f"{message}, such as `{self.example}`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices: Mapping[str, Parser] = action.choices  # type: ignore[assignment]
        if choices is not None and value not in choices:
            near = get_close_matches(value, choices, 1)
            if not near:
                self.error(f"there is no command {typed(value)}, but {', '.join(choices)}")
            self._exit(
                f"there is no command {typed(value)}: did you mean {near[0]}, such as "
                f"`{choices[near[0]].example}`?"
            )

    def _exit(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)}", file=sys.stderr)
        sys.exit(2)


def converted(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """
    A C{type} for C{add_argument}.

    @param parse: makes the value; raises C{ValueError} with what is wrong with it.
    """

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{typed(text)} {error}") from None

    return convert
