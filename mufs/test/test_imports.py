"""The directions in which the modules of mUFS may depend on one another."""

import ast
from collections.abc import Callable, Iterator
from importlib.util import resolve_name
from pathlib import Path

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

import mufs

# From bottom to top. What is in none of them (services, taps, demo) lies above them all.
LAYERS = [
    ["mufs.interfaces", "mufs.units", "mufs.wire"],
    ["mufs.cache"],
    ["mufs.communication"],
    ["mufs.filesystem"],
]
LIBFUSE = "mufs.filesystem.client.libfuse"
HARMLESS = {f"threading.{name}" for name in ("Lock", "local", "enumerate", "get_ident")}
BRIDGE = "mufs.filesystem.client.bridge"
SIGNALS = "mufs.notify"


@frozen
class Module:
    """A module, by its source."""

    name: str
    source: str
    package: bool = False

    def imports(self) -> Iterator[str]:
        """What it imports, wherever in it: `a.b` for `import a.b` and `from a import b` alike."""
        base = self.name if self.package else self.name.rpartition(".")[0]
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = resolve_name("." * node.level + (node.module or ""), base)
                yield from (f"{origin}.{alias.name}" for alias in node.names)

    def names(self) -> Iterator[str]:
        """The variables and attributes that it uses, by their last name."""
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, ast.Name):
                yield node.id
            elif isinstance(node, ast.Attribute):
                yield node.attr


def modules() -> list[Module]:
    """All modules of mUFS but its tests."""
    root = Path(mufs.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if parts[1] != "test":
            package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if package else parts)
            found.append(Module(name, path.read_text(encoding="utf-8"), package))
    return found


def within(name: str, *packages: str) -> bool:
    """Tell whether a name is one of these packages or modules, or in one of them."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def layer(name: str) -> int:
    """The place of what a dotted name stands for, counted from the bottom."""
    if name in ("mufs", "mufs.__version__"):
        return -1
    for number, packages in enumerate(LAYERS):
        if within(name, *packages):
            return number
    return len(LAYERS)


def goes_up(importer: str, imported: str) -> bool:
    """Tell whether this import leads from a lower layer to a higher one."""
    return within(imported, "mufs") and layer(imported) > layer(importer)


def crosses_sides(importer: str, imported: str) -> bool:
    """Tell whether this import leads from a client part to a server part, or back."""
    sides = {"client", "server"}
    own = sides.intersection(importer.split("."))
    other = sides.intersection(imported.split("."))
    return within(imported, "mufs") and bool(own) and bool(other) and own != other


def is_mount_library(importer: str, imported: str) -> bool:
    """Tell whether this import brings FUSE to another module than the one that chooses it."""
    return within(imported, "fuse", "mfusepy") and importer != LIBFUSE


def is_threading(importer: str, imported: str) -> bool:
    """
    Tell whether this import brings threads to another module than the bridge; locks, what belongs
    to a thread, and which threads there are may be known.
    """
    named = within(imported, "threading", "_thread")
    return named and imported not in HARMLESS and importer != BRIDGE


def is_input_output(importer: str, imported: str) -> bool:
    """Tell whether this import ties formats or caches to an event loop."""
    return (
        within(importer, "mufs.wire", "mufs.cache")
        and within(imported, "twisted.internet")
        and not within(imported, "twisted.internet.interfaces", "twisted.internet.defer")
    )


def is_global_reactor(importer: str, imported: str) -> bool:
    """Tell whether this import names the reactor elsewhere than where a program begins."""
    begins = importer.endswith("_tap") or within(importer, "mufs.demo")
    return within(imported, "twisted.internet.reactor") and not begins


def circles(found: list[Module]) -> list[list[str]]:
    """The groups of modules that import one another, directly or by others of the group."""
    names = {module.name for module in found}
    imports = {
        module.name: {
            origin
            for imported in module.imports()
            if (origin := module_of(imported, names)) is not None
        }
        for module in found
    }
    reached = {name: reachable(name, imports) for name in names}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in names
        if name in reached[name]
    }
    return sorted(map(list, groups))


def module_of(imported: str, names: set[str]) -> str | None:
    """The module that a dotted name is in, or stands for."""
    while imported and imported not in names:
        imported = imported.rpartition(".")[0]
    return imported or None


def reachable(name: str, imports: dict[str, set[str]]) -> set[str]:
    """What a module imports, also by way of others."""
    found: set[str] = set()
    left = [name]
    while left:
        new = imports[left.pop()] - found
        found |= new
        left += new
    return found


class DirectionTests(SynchronousTestCase):
    """What no module of mUFS does."""

    def assert_none(self, wrong: Callable[[str, str], bool]) -> None:
        """No module has an import of this kind."""
        found = [
            f"{module.name} imports {imported}"
            for module in modules()
            for imported in module.imports()
            if wrong(module.name, imported)
        ]
        self.assertEqual(found, [])

    def test_layers(self) -> None:
        """A module imports only from its own layer and from lower ones."""
        self.assert_none(goes_up)

    def test_circles(self) -> None:
        """No module imports itself by way of others, not even for the type checker."""
        self.assertEqual(circles(modules()), [])

    def test_sides(self) -> None:
        """A client part imports no server part, and a server part no client part."""
        self.assert_none(crosses_sides)

    def test_fuse(self) -> None:
        """Only one module imports fuse."""
        self.assert_none(is_mount_library)

    def test_threads(self) -> None:
        """Only the bridge imports threading, but for locks and what belongs to a thread."""
        self.assert_none(is_threading)

    def test_crossing(self) -> None:
        """Only the bridge carries calls from one thread to another; a signal is no thread."""
        crossings = {"blockingCallFromThread", "callFromThread"}
        found = [
            f"{module.name} uses {name}"
            for module in modules()
            if module.name not in (BRIDGE, SIGNALS)
            for name in module.names()
            if name in crossings
        ]
        self.assertEqual(found, [])

    def test_no_input_output(self) -> None:
        """Formats and caches know of twisted.internet its interfaces and Deferreds alone."""
        self.assert_none(is_input_output)

    def test_reactor(self) -> None:
        """Only the taps and the demo import the global reactor."""
        self.assert_none(is_global_reactor)


class RuleTests(SynchronousTestCase):
    """The rules themselves."""

    def test_imports(self) -> None:
        """Absolute, relative and late imports are all seen, by the full name."""
        source = (
            "import mufs.wire.pages as pages\n"
            "from mufs.wire import segments\n"
            "from .client import blocks\n"
            "from ..wire.channel import Read\n"
            "def late():\n"
            "    from twisted.internet import reactor\n"
        )
        expected = [
            "mufs.cache.client.blocks",
            "mufs.wire.channel.Read",
            "mufs.wire.pages",
            "mufs.wire.segments",
            "twisted.internet.reactor",
        ]
        module = Module("mufs.cache.store", source)
        self.assertEqual(sorted(module.imports()), expected)
        package = Module("mufs.cache", "from . import client", package=True)
        self.assertEqual(list(package.imports()), ["mufs.cache.client"])

    def test_modules(self) -> None:
        """Packages and modules are found, each by its name, and tests are not."""
        found = {module.name for module in modules()}
        self.assertLessEqual({"mufs", "mufs.wire", "mufs.wire.segments", "mufs.interfaces"}, found)
        self.assertFalse(any(within(name, "mufs.test") for name in found))

    def test_circle(self) -> None:
        """Circles are found, each with all of its modules, however it is imported."""
        found = [
            Module("a", "", package=True),
            Module("a.one", "from a.two import Two\nimport a.four"),
            Module("a.two", "def late():\n    from a import three"),
            Module(
                "a.three",
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import One",
            ),
            Module("a.four", "import a.five"),
            Module("a.five", "import os"),
            Module("a.six", "import a.seven, a.one"),
            Module("a.seven", "from a.six import Six"),
        ]
        expected = [["a.one", "a.three", "a.two"], ["a.seven", "a.six"]]
        self.assertEqual(circles(found), expected)

    def test_wrong(self) -> None:
        """Each rule holds for an import that breaks it."""
        self.assertTrue(goes_up("mufs.wire.pages", "mufs.cache.client"))
        self.assertTrue(goes_up("mufs.filesystem.server.library", "mufs.server_tap.Options"))
        self.assertTrue(crosses_sides("mufs.cache.client.blocks", "mufs.cache.server.queue.Entry"))
        self.assertTrue(crosses_sides("mufs.filesystem.server", "mufs.communication.client"))
        self.assertTrue(is_mount_library("mufs.client_tap", "fuse.FUSE"))
        self.assertTrue(is_threading("mufs.client_tap", "threading.Thread"))
        self.assertTrue(is_input_output("mufs.cache.server.queue", "twisted.internet.task"))
        self.assertTrue(is_input_output("mufs.wire.channel", "twisted.internet"))
        self.assertTrue(is_global_reactor("mufs.client", "twisted.internet.reactor"))

    def test_right(self) -> None:
        """No rule holds for an import that keeps it."""
        self.assertFalse(goes_up("mufs.cache.server.queue", "mufs.wire.pages.runs"))
        self.assertFalse(goes_up("mufs.wire.metadata", "mufs.wire.channel"))
        self.assertFalse(goes_up("mufs.communication.client", "mufs.__version__"))
        self.assertFalse(goes_up("mufs.client_tap", "mufs.client"))
        self.assertFalse(crosses_sides("mufs.communication.server", "mufs.cache.server"))
        self.assertFalse(crosses_sides("mufs.demo", "mufs.cache.server"))
        self.assertFalse(is_mount_library(LIBFUSE, "fuse.FUSE"))
        self.assertFalse(is_threading(BRIDGE, "threading"))
        self.assertFalse(is_input_output("mufs.cache.client", "twisted.internet.defer.Deferred"))
        self.assertFalse(is_input_output("mufs.client", "twisted.internet.task"))
        self.assertFalse(is_global_reactor("mufs.client_tap", "twisted.internet.reactor"))
