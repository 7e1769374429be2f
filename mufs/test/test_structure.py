"""The size of the modules and classes of mUFS, and the names of their constants."""

import ast
from collections.abc import Callable, Iterator

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.test_imports import Module, modules

MAX_LINES = 400
"""Lines of a module."""

MAX_ATTRIBUTES = 15
"""Attributes of an instance, unless the docstring of its class says why there are more."""

FORBIDDEN_PREFIXES = ("MOST_", "LONGEST", "LARGEST")
"""What no constant begins with: limits have the prefix C{MAX_}."""

FORBIDDEN_NAMES = ("PATIENCE",)
"""What no constant is called: a duration says what it bounds."""


def too_long(module: Module) -> Iterator[str]:
    """The number of lines of a module that has too many."""
    count = len(module.source.splitlines())
    if count > MAX_LINES:
        yield f"{module.name}: {count} lines"


def too_many_attributes(module: Module) -> Iterator[str]:
    """The classes with too many attributes and no sentence about them."""
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.ClassDef):
            count = len(instance_attributes(node))
            if count > MAX_ATTRIBUTES and "attributes" not in (ast.get_docstring(node) or ""):
                yield f"{module.name}.{node.name}: {count} attributes"


def instance_attributes(node: ast.ClassDef) -> set[str]:
    """The names that a class declares, and those that its methods assign on C{self}."""
    found = {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    for each in ast.walk(node):
        if (
            isinstance(each, ast.Attribute)
            and isinstance(each.ctx, ast.Store)
            and isinstance(each.value, ast.Name)
            and each.value.id == "self"
        ):
            found.add(each.attr)
    return found


def misnamed_constants(module: Module) -> Iterator[str]:
    """The constants of a module with a forbidden name."""
    for statement in ast.parse(module.source).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    name = node.id.lstrip("_")
                    if name.startswith(FORBIDDEN_PREFIXES) or name in FORBIDDEN_NAMES:
                        yield f"{module.name}.{node.id}"


class StructureTests(SynchronousTestCase):
    """What no module of mUFS has."""

    def assert_none(self, wrong: Callable[[Module], Iterator[str]]) -> None:
        """No module breaks this rule."""
        self.assertEqual([found for module in modules() for found in wrong(module)], [])

    def test_lines(self) -> None:
        """No module is too long to be read at one go."""
        self.assert_none(too_long)

    def test_attributes(self) -> None:
        """A class has few attributes, or its docstring says why it has many."""
        self.assert_none(too_many_attributes)

    def test_constants(self) -> None:
        """Limits have one prefix, and durations say what they bound."""
        self.assert_none(misnamed_constants)


class RuleTests(SynchronousTestCase):
    """The rules themselves: each finds what breaks it, and nothing else."""

    def test_lines(self) -> None:
        """One line too many is found."""
        self.assertEqual(list(too_long(Module("a", "x = 1\n" * MAX_LINES))), [])
        found = list(too_long(Module("a", "x = 1\n" * (MAX_LINES + 1))))
        self.assertEqual(found, ["a: 401 lines"])

    def test_attributes(self) -> None:
        """Declared and assigned attributes count, each once; a docstring may explain them."""

        def module(docstring: str, count: int) -> Module:
            assigned = ["self.a0 += 1", *(f"self.a{n} = b.c = 1" for n in range(1, count))]
            body = "\n        ".join(assigned)
            source = (
                f'class A:\n    """{docstring}"""\n    a0: int\n    def f(self, b):\n        {body}'
            )
            return Module("a", source)

        self.assertEqual(list(too_many_attributes(module("A.", MAX_ATTRIBUTES))), [])
        found = list(too_many_attributes(module("A.", MAX_ATTRIBUTES + 1)))
        self.assertEqual(found, ["a.A: 16 attributes"])
        explained = module("It has many attributes because ...", MAX_ATTRIBUTES + 1)
        self.assertEqual(list(too_many_attributes(explained)), [])

    def test_constants(self) -> None:
        """Forbidden names are found also if they are private or have a type."""
        source = "MOST_A = 1\n_LARGEST: int = 2\nLONGEST_A, B = 3, 4\nPATIENCE = 5.0\nMAX_A = 6\n"
        found = list(misnamed_constants(Module("a", source)))
        self.assertEqual(found, ["a.MOST_A", "a._LARGEST", "a.LONGEST_A", "a.PATIENCE"])
