"""The push task of a server's control socket."""

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import ensureDeferred

from mufs.communication.server.channel import ServerChannelFactory
from mufs.control import Record, Task
from mufs.interfaces import IImage, IImageLibrary


def push_task(factory: ServerChannelFactory, library: IImageLibrary, directory: str) -> Task:
    """
    The task C{push}: have clients pull an image.

    @param directory: path of the exported directory; empty if the library is not a directory.
    """

    async def push(asked: dict[str, Any], tell: Callable[[Record], None]) -> Record:
        names = asked.get("to")
        if not (names is None or isinstance(names, list)):
            raise ValueError("'to' is no list of names")
        path, image = await factory.in_thread(_open, asked)
        clients = [channel for channel in factory.channels if channel.name]
        to = None if names is None else set(map(str, names))
        return await factory.pushes.push(
            path, image.attributes.size, clients=clients, names=to, report=tell
        )

    def _open(asked: dict[str, Any]) -> tuple[bytes, IImage]:
        """
        The image by its file on this host if that is exported, or else by its path.

        Symbolic links are followed as far as they stay in the directory, as a pull does.
        """
        given = str(asked.get("path", "")).strip("/")
        root = os.path.realpath(directory)
        paths = [os.fsencode(given)]
        if directory and "\0" not in given:
            for file in (os.path.join(root, given), str(asked.get("file", ""))):
                real = os.path.realpath(file)
                if real.startswith(f"{root}/"):
                    paths.insert(0, os.fsencode(real[len(root) + 1 :]))
        errors: list[OSError] = []
        for path in paths:
            try:
                return path, library.open(path)
            except OSError as error:
                errors.append(error)
        raise errors[0]

    return lambda asked, tell: ensureDeferred(push(asked, tell))
