"""The access rules that a server applies now, and what happens when they are read again."""

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mufs.filesystem.server.access import Access, Rule
from mufs.interfaces import IImageLibrary
from mufs.server_core import ServerCore


class AccessRules:
    """Shares a library by rules that may change."""

    _log = Logger()

    def __init__(
        self,
        library: IImageLibrary,
        access: Access,
        in_thread: Callable[..., "Deferred[Any]"],
    ) -> None:
        """@param in_thread: calls a function of the library outside the reactor's thread."""
        self._library = library
        self._access = access
        self._in_thread = in_thread

    def view(self, name: str | None) -> IImageLibrary | None:
        """See L{Access.view}."""
        return self._access.view(self._library, name)

    def replace(self, access: Access, core: ServerCore) -> None:
        """
        Apply other rules from now on. The clients that they concern are disconnected, and connect
        again at once; all of them if something is no longer shared with somebody: nobody may
        keep the keys of images.
        """
        before, self._access = self._access, access
        narrower = access.is_narrower(before)
        if narrower:
            core.keys.replace_secret()
            core.window.clear()
            core.controller.expelled()
        for channel in list(core.factory.channels):
            if narrower or access.subtrees(channel.name) != before.subtrees(channel.name):
                channel.transport.abortConnection()
        self._log.info("access rules read: {count}", count=len(access.rules or ()))
        self.check_paths()

    def check_paths(self) -> None:
        """Warn of rules whose path is not there."""
        if self._access.rules:
            checking = self._in_thread(self._access.without_path, self._library)
            checking.addCallback(self._warn)

    def _warn(self, rules: list[Rule]) -> None:
        for rule in rules:
            self._log.warn(
                "access rule {name}:/{path}: there is no such path",
                name=rule.name, path=os.fsdecode(b"/".join(rule.path)),
            )  # fmt: skip
