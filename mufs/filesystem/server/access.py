"""
Access control: rules for subtrees by a client's name, and squashing of callers.

Each client gets a view of the library that applies both. What no rule allows does not exist for
the client: such names are ENOENT, and in no listing.
"""

import errno
import stat
from collections.abc import Collection
from fnmatch import fnmatchcase

from attrs import evolve, frozen
from zope.interface import implementer

from mufs.interfaces import IImage, IImageLibrary
from mufs.wire.metadata import NOBODY, Attributes, Caller, Statistics

Names = tuple[bytes, ...]


@frozen
class Rule:
    """
    Clients whose names match may read a subtree.

    @ivar name: shell pattern of a client's name, in lower case.
    @ivar path: names from the root to the subtree.
    """

    name: str
    path: Names


def parse_rule(text: str) -> Rule:
    """
    Parse C{NAME:PATH} or C{NAME:PATH:ro}.

    @raise ValueError: when it is malformed.
    """
    name, colon, path = text.partition(":")
    for ending in (":ro", ":rw"):
        if path.endswith(ending):
            path = path.removesuffix(ending)
            if ending == ":rw":
                raise ValueError("images are exported read-only: rw is not possible")
            break
    if not (name and colon and path.startswith("/")):
        raise ValueError("is not of the form NAME:/PATH or NAME:/PATH:ro")
    # The bytes that the name has on disk.
    names = tuple(part.encode("utf-8", "surrogateescape") for part in path.strip("/").split("/"))
    if any(each in (b"", b".", b"..") for each in names) and names != (b"",):
        raise ValueError("has a path with an empty name, '.' or '..' in it")
    return Rule(name.lower(), () if names == (b"",) else names)


def read_rules(path: str) -> tuple[Rule, ...]:
    """
    The rules in a file: one a line, besides empty lines and comments that begin with C{#}.

    @raise ValueError: when a line is malformed, or the file is no text.
    @raise OSError: when it cannot be read.
    """
    rules = []
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if text and not text.startswith("#"):
                try:
                    rules.append(parse_rule(text))
                except ValueError as error:
                    raise ValueError(f"line {number}, {text}, {error}") from None
    return tuple(rules)


@frozen
class Access:
    """
    The server's access rules.

    @ivar rules: what is allowed; C{None} if every client may read everything.
    @ivar root_squash: treat root on a client's host as nobody.
    @ivar all_squash: treat every caller as nobody.
    """

    rules: tuple[Rule, ...] | None = None
    root_squash: bool = True
    all_squash: bool = False

    def view(self, library: IImageLibrary, name: str | None) -> IImageLibrary | None:
        """
        The view of a library for a client.

        @param name: the name in the client's verified certificate, if it has one.
        @return: C{None} if no rule matches the client.
        """
        subtrees = self.subtrees(name)
        return View(library, self, subtrees) if subtrees else None

    def subtrees(self, name: str | None) -> frozenset[Names]:
        """The paths that a client may see with everything beneath them."""
        if self.rules is None:
            return frozenset({()})
        return frozenset(rule.path for rule in self.rules if fnmatchcase(name or "", rule.name))

    def is_narrower(self, before: "Access") -> bool:
        """Whether some client may not see something that C{before} let it see."""
        if self.rules is None or self.rules == before.rules:
            return False
        return before.rules is None or not set(before.rules) <= set(self.rules)

    def without_path(self, library: IImageLibrary) -> list[Rule]:
        """The rules whose path leads nowhere now."""
        found = []
        for rule in self.rules or ():
            try:
                library.getattr(b"/".join(rule.path))
            except OSError:
                found.append(rule)
        return found

    def squash(self, caller: Caller | None) -> Caller | None:
        """The caller to check permissions for. Each number is squashed by itself, as in NFS."""
        if caller is None or not (self.root_squash or self.all_squash):
            return caller
        if self.all_squash:
            return NOBODY
        groups = [group or NOBODY.gid for group in caller.groups]
        return Caller(caller.uid or NOBODY.uid, caller.gid or NOBODY.gid, groups)


EVERYBODY = Access()


@implementer(IImageLibrary)
class View:
    """The part of a library that a client may see: subtrees, and the directories above them."""

    def __init__(self, library: IImageLibrary, access: Access, subtrees: Collection[Names]) -> None:
        self._library = library
        self._squash = access.squash
        self._subtrees = subtrees
        self._all = () in subtrees

    def getattr(self, path: bytes, caller: Caller | None = None) -> Attributes:
        """See L{IImageLibrary.getattr}."""
        shown = self._shown(path)
        found = self._library.getattr(path, self._squash(caller))
        return found if shown else _above_subtree(found)

    def readdir(self, path: bytes, caller: Caller | None = None) -> list[tuple[bytes, Attributes]]:
        """See L{IImageLibrary.readdir}."""
        shown = self._shown(path)
        found = self._library.readdir(path, self._squash(caller))
        if shown:
            return found
        entries = []
        for name, attributes in found:
            try:
                beneath = self._shown(path + b"/" + name if path else name)
                entries.append((name, attributes if beneath else _above_subtree(attributes)))
            except FileNotFoundError:
                continue
        return entries

    def readlink(self, path: bytes, caller: Caller | None = None) -> bytes:
        """See L{IImageLibrary.readlink}."""
        if not self._shown(path):
            self.getattr(path, caller)
            raise OSError(errno.EINVAL, "not a symbolic link")
        return self._library.readlink(path, self._squash(caller))

    def open(self, path: bytes, caller: Caller | None = None) -> IImage:
        """See L{IImageLibrary.open}."""
        if not self._shown(path):
            self.getattr(path, caller)
            raise OSError(errno.EISDIR, "is a directory")
        return self._library.open(path, self._squash(caller))

    def statfs(self) -> Statistics:
        """See L{IImageLibrary.statfs}. Counts are 0 for a client that does not see everything."""
        found = self._library.statfs()
        if self._all:
            return found
        return Statistics(found.bsize, found.frsize, 0, 0, 0, 0, 0, 0, found.namemax)

    def _shown(self, path: bytes) -> bool:
        """
        Whether a path is in a subtree; if not, it is above one.

        @raise FileNotFoundError: when it is neither.
        """
        names = tuple(path.split(b"/")) if path else ()
        if any(names[: len(subtree)] == subtree for subtree in self._subtrees):
            return True
        if any(subtree[: len(names)] == names for subtree in self._subtrees):
            return False
        raise _absent()


def _absent() -> OSError:
    return FileNotFoundError(errno.ENOENT, "no such file or directory")


def _above_subtree(found: Attributes) -> Attributes:
    """A directory without size and times, which would reveal what else is in it."""
    if not stat.S_ISDIR(found.mode):
        raise _absent()
    return evolve(found, nlink=2, size=0, blocks=0, atime=0, mtime=0, ctime=0)
