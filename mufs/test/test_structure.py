"""How large the modules and classes of mUFS are, and how limits are called."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.test_imports import Module, modules

MAX_LINES = 400
"""Of a module."""

MAX_ATTRIBUTES = 15
"""That the instances of a class have, unless its docstring says why they are more."""

OLD_NAMES = re.compile(r"_?((MOST|LONGEST|LARGEST)(_|$)|PATIENCE$)")
"""Limits begin with MAX_, and durations say what they bound."""


def attributes(definition: ast.ClassDef) -> set[str]:
    """The attributes that a class declares, or assigns to in its methods."""
    targets: list[ast.expr] = []
    for node in ast.walk(definition):
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets.append(node.target)
    nodes = [node for target in targets for node in ast.walk(target)]
    declared = [node.target for node in definition.body if isinstance(node, ast.AnnAssign)]
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    } | {node.id for node in declared if isinstance(node, ast.Name)}


def faults(module: Module) -> Iterator[str]:
    """What is too large in a module, or badly named."""
    tree = ast.parse(module.source)
    lines = module.source.count("\n")
    if lines > MAX_LINES:
        yield f"{module.name} has {lines} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            count = len(attributes(node))
            if count > MAX_ATTRIBUTES and "attributes" not in (ast.get_docstring(node) or ""):
                yield f"{module.name}.{node.name} has {count} attributes"
    for name in module.names():
        if OLD_NAMES.match(name):
            yield f"{module.name} has {name}"


class StructureTests(SynchronousTestCase):
    """All modules of mUFS but its tests."""

    def test_all(self) -> None:
        """No module or class is too large, and no limit is badly named."""
        self.assertEqual([fault for module in modules() for fault in faults(module)], [])

    def test_faults(self) -> None:
        """Each kind of fault is found, and a class whose docstring gives its reason is none."""
        many = "\n".join(f"        self.a{number} = 0" for number in range(MAX_ATTRIBUTES + 1))
        method = f"    def __init__(self):\n{many}\n"
        source = (
            f"class One:\n{method}"
            f'class Two:\n    """It has many attributes because it must."""\n{method}'
            "MOST_THINGS = 3\nMAX_THINGS = PATIENCE = 4\n" + "\n" * MAX_LINES
        )
        self.assertEqual(
            [
                fault.removeprefix("m has ").removeprefix("m.")
                for fault in faults(Module("m", source))
            ],
            [f"{source.count(chr(10))} lines", "One has 16 attributes", "MOST_THINGS", "PATIENCE"],
        )
