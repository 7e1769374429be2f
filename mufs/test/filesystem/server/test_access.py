"""Who sees what of the images: rules for subtrees, callers, and whom they count as."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mufs.filesystem.server.access import Access, parse_rule, read_rules
from mufs.filesystem.server.library import ExportedDirectory
from mufs.interfaces import IImageLibrary
from mufs.wire.metadata import NOBODY, Caller, Statistics

ROOT = Caller(0, 0, [])
USER = Caller(1000, 1000, [24])


class AccessTestCase(SynchronousTestCase):
    """Has a tree of images."""

    def setUp(self) -> None:
        """Make it."""
        self.root = Path(self.mktemp()).absolute()
        for name in ("common/base.img", "teams/red/red.img", "teams/blue/blue.img", "top.img"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(name)
        os.symlink("teams/blue", self.root / "link")
        self.library = ExportedDirectory(str(self.root))

    def view(self, name: str | None, *rules: str, **squash: bool) -> IImageLibrary:
        """What a client sees under these rules."""
        access = Access(tuple(map(parse_rule, rules)) or None, **squash)
        view = access.view(self.library, name)
        assert view is not None
        return view

    def names(self, view: IImageLibrary, path: bytes = b"") -> list[bytes]:
        """The names in a listing."""
        return sorted(name for name, _ in view.readdir(path))

    def errno_of(self, call: Callable[..., Any], *args: Any) -> str:
        """The name of the errno that a call ends with."""
        try:
            call(*args)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "none"


class RuleTests(AccessTestCase):
    """C{--allow}."""

    def test_parsed(self) -> None:
        """A rule has a pattern and a path, with colons in it as they come."""
        for text, name, path in (
            ("host1.lab:/", "host1.lab", ()),
            ("*.LAB:/a/b/:ro", "*.lab", (b"a", b"b")),
            ("host:/a:b", "host", (b"a:b",)),
            ("host:/gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n", "host", (b"gr\xc3\xbcn",)),
        ):
            rule = parse_rule(text)
            self.assertEqual((rule.name, rule.path), (name, path))

    def test_refused(self) -> None:
        """What is none is refused, and so is writing, by name."""
        for text in ("", "host", "host:", ":/a", "host:a", "h:/a/../b", "h:/a//b", "h:/./a"):
            self.assertRaises(ValueError, parse_rule, text)
        error = self.assertRaises(ValueError, parse_rule, "host:/a:rw")
        self.assertIn("exported read-only", str(error))

    def test_no_rules(self) -> None:
        """Without rules everybody sees all, with whatever name."""
        for name in (None, "host"):
            view = self.view(name)
            self.assertEqual(self.names(view), self.names(self.library))
            self.assertEqual(view.statfs().blocks, self.library.statfs().blocks)

    def test_names(self) -> None:
        """A rule is for the clients whose name matches its pattern, and no others."""
        access = Access((parse_rule("*.lab:/common"), parse_rule("HOST9:/top.img")))
        for name, shown in (
            ("a.lab", [b"common"]),
            ("a.b.lab", [b"common"]),
            ("host9", [b"top.img"]),
        ):
            view = access.view(self.library, name)
            assert view is not None
            self.assertEqual(self.names(view), shown)
        for other in ("lab", "a.lab.org", "host99", "", None):
            self.assertIsNone(access.view(self.library, other))

    def test_file(self) -> None:
        """A file has a rule in each line, and may have comments; a mistake is named by its line."""
        path = Path(self.mktemp())
        path.write_text("# hosts\n\n  *.lab:/common  \nhost9:/top.img\n")
        rules = read_rules(str(path))
        self.assertEqual([rule.name for rule in rules], ["*.lab", "host9"])
        path.write_text("*.lab:/common\nhost9\n")
        error = self.assertRaises(ValueError, read_rules, str(path))
        self.assertIn("line 2, host9, is not", str(error))
        path.write_text("")
        self.assertEqual(read_rules(str(path)), ())
        self.assertIsNone(Access(()).view(self.library, "host9"))

    def test_narrower(self) -> None:
        """Access is narrower if a rule is gone, or if there were none so far."""
        one, two = parse_rule("a:/x"), parse_rule("b:/y")
        for before, after, narrower in (
            (None, None, False),
            (None, (one,), True),
            (None, (), True),
            ((one,), None, False),
            ((one,), (one,), False),
            ((one,), (one, two), False),
            ((one, two), (two,), True),
            ((one,), (), True),
        ):
            self.assertIs(Access(after).is_narrower(Access(before)), narrower, (before, after))

    def test_without_path(self) -> None:
        """Rules whose path leads nowhere are known."""
        there, gone = parse_rule("*:/common"), parse_rule("*:/nowhere/x")
        self.assertEqual(Access((there, gone)).without_path(self.library), [gone])
        self.assertEqual(Access().without_path(self.library), [])


class ViewTests(AccessTestCase):
    """What a client sees to which some subtrees are shown."""

    def setUp(self) -> None:
        """Show it two, one of them given twice."""
        super().setUp()
        self.shown = self.view("h", "h:/common", "*:/teams/red", "h:/teams/red/red.img")

    def test_interface(self) -> None:
        """A view is a library."""
        verifyObject(IImageLibrary, self.shown)

    def test_listings(self) -> None:
        """Directories on the way list the way alone."""
        self.assertEqual(self.names(self.shown), [b"common", b"teams"])
        self.assertEqual(self.names(self.shown, b"teams"), [b"red"])
        self.assertEqual(self.names(self.shown, b"teams/red"), [b"red.img"])
        self.assertEqual(self.shown.open(b"teams/red/red.img").read(0, 99), b"teams/red/red.img")

    def test_absent(self) -> None:
        """What is not shown fails just as what is not there, by whichever operation."""
        for path in (
            b"top.img",
            b"link",
            b"link/blue.img",
            b"teams/blue",
            b"teams/blue/blue.img",
            b"teams/none",
            b"none/x",
            b"top.img/x",
            b"common2",
            b"teams/re",
            b"/common",
            b"teams/../top.img",
            b"./top.img",
            b"teams//blue",
        ):
            for operation in ("getattr", "readdir", "readlink", "open"):
                found = self.errno_of(getattr(self.shown, operation), path)
                self.assertEqual(found, "ENOENT", (operation, path))

    def test_upwards(self) -> None:
        """No path through what is shown leads out of it."""
        for path in (
            b"common/../top.img",
            b"common/../teams/blue",
            b"teams/red/../blue/blue.img",
            b"common//x",
            b"common/.",
        ):
            for operation in ("getattr", "readdir", "readlink", "open"):
                found = self.errno_of(getattr(self.shown, operation), path)
                self.assertIn(found, ("EACCES", "ENOENT"), (operation, path))

    def test_on_the_way(self) -> None:
        """A directory on the way tells nothing of what else is in it."""
        before = self.shown.getattr(b"teams"), self.shown.getattr(b"")
        (self.root / "teams" / "green").mkdir()
        (self.root / "more.img").write_bytes(b"")
        os.utime(self.root / "teams", (1, 1))
        self.assertEqual((self.shown.getattr(b"teams"), self.shown.getattr(b"")), before)
        self.assertEqual(dict(self.shown.readdir(b""))[b"teams"], before[0])
        self.assertEqual(before[0].ino, (self.root / "teams").stat().st_ino)
        self.assertEqual(self.errno_of(self.shown.open, b"teams"), "EISDIR")
        self.assertEqual(self.errno_of(self.shown.readlink, b"teams"), "EINVAL")

    def test_link_on_the_way(self) -> None:
        """A link, or a file, that stands where the way should be is not shown."""
        shown = self.view("h", "h:/link/x", "h:/top.img/x")
        self.assertEqual(self.names(shown), [])
        for path in (b"link", b"top.img"):
            for operation in ("getattr", "readlink", "open"):
                found = self.errno_of(getattr(shown, operation), path)
                self.assertEqual(found, "ENOENT", (operation, path))

    def test_statistics(self) -> None:
        """How much there is in all is not told."""
        found = self.shown.statfs()
        full = self.library.statfs()
        expected = Statistics(full.bsize, full.frsize, 0, 0, 0, 0, 0, 0, full.namemax)
        self.assertEqual(found, expected)


class CallerTests(AccessTestCase):
    """What the mode bits let whom do."""

    OPERATIONS = ("getattr", "readdir", "readlink", "open")

    def setUp(self) -> None:
        """Give the tree to somebody, if that is possible."""
        super().setUp()
        self.file = self.root / "common" / "base.img"
        self.directory = self.root / "common"

    def may_open(self, caller: Caller, mode: int, uid: int, gid: int) -> bool:
        """Whether somebody may open a file of this mode and these owners."""
        self.file.chmod(mode)
        found = self.file.stat()
        real = os.fstat

        def fstat(fd: int) -> os.stat_result:
            stat = real(fd)
            if stat.st_ino != found.st_ino:
                return stat
            named = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blocks", "st_rdev")
            rest = {name: getattr(stat, name) for name in named}
            return os.stat_result((*stat[:4], uid, gid, *stat[6:10]), rest)

        patch = self.patch(os, "fstat", fstat)
        try:
            return self.errno_of(self.library.open, b"common/base.img", caller) == "none"
        finally:
            patch.restore()

    def test_open(self) -> None:
        """The owner's bits are for the owner, the group's for the group, the rest for the rest."""
        for caller, mode, uid, gid, may in (
            (USER, 0o400, 1000, 5, True), (USER, 0o400, 1001, 5, False),
            (USER, 0o044, 1000, 1000, False), (USER, 0o040, 5, 1000, True),
            (USER, 0o040, 5, 24, True), (USER, 0o040, 5, 25, False),
            (USER, 0o004, 5, 24, False), (USER, 0o004, 5, 5, True),
            (USER, 0o001, 5, 5, True), (NOBODY, 0o640, 0, 0, False), (NOBODY, 0o644, 0, 0, True),
            (ROOT, 0o000, 5, 5, True),
        ):  # fmt: skip
            found = self.may_open(caller, mode, uid, gid)
            self.assertEqual(found, may, (caller, oct(mode), uid, gid))

    def outcomes(self, view: IImageLibrary, caller: Caller | None, path: bytes) -> list[str]:
        """How each operation ends."""
        return [self.errno_of(getattr(view, name), path, caller) for name in self.OPERATIONS]

    def test_search(self) -> None:
        """A directory that may not be searched hides what lies below, but not itself."""
        self.directory.chmod(0o744)
        other = Caller(os.getuid() + 1, os.getgid() + 1, [])
        self.assertEqual(self.outcomes(self.library, other, b"common/base.img"), ["EACCES"] * 4)
        self.assertEqual(self.outcomes(self.library, other, b"common/none"), ["EACCES"] * 4)
        self.assertEqual(self.errno_of(self.library.getattr, b"common", other), "none")
        # A listing tells attributes, which takes the right to search.
        self.assertEqual(self.errno_of(self.library.readdir, b"common", other), "EACCES")
        self.directory.chmod(0o711)
        self.assertEqual(self.errno_of(self.library.readdir, b"common", other), "EACCES")
        self.assertEqual(self.errno_of(self.library.open, b"common/base.img", other), "none")
        self.root.chmod(0o700)
        self.assertEqual(self.errno_of(self.library.getattr, b"", other), "none")
        self.assertEqual(self.errno_of(self.library.getattr, b"common", other), "EACCES")

    def test_squash(self) -> None:
        """Root counts as nobody unless told otherwise, others only if told so."""
        default, open_, all_ = Access(), Access(root_squash=False), Access(all_squash=True)
        mixed = Caller(1000, 0, [0, 24])
        self.assertEqual(default.squash(ROOT), NOBODY)
        self.assertEqual(default.squash(USER), USER)
        self.assertEqual(default.squash(mixed), Caller(1000, 65534, [65534, 24]))
        self.assertEqual((open_.squash(ROOT), open_.squash(mixed)), (ROOT, mixed))
        self.assertEqual({all_.squash(each) == NOBODY for each in (ROOT, USER, mixed)}, {True})
        self.assertEqual(Access(root_squash=False, all_squash=True).squash(ROOT), NOBODY)

    def test_squashed(self) -> None:
        """Whom a caller counts as is what every operation of a view goes by."""
        self.directory.chmod(0o700)
        self.file.chmod(0o600)
        path = b"common/base.img"
        self.assertEqual(self.outcomes(self.view("h"), ROOT, path), ["EACCES"] * 4)
        allowed = ["none", "ENOTDIR", "EINVAL", "none"]
        self.assertEqual(self.outcomes(self.view("h", root_squash=False), ROOT, path), allowed)
        mine = Caller(os.getuid(), os.getgid(), [])
        self.assertEqual(self.outcomes(self.view("h", all_squash=True), mine, path), ["EACCES"] * 4)
