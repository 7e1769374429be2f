"""Other revisions of mUFS, to be measured beside this one.

Each is installed into an environment of its own, with the dependencies that it asks for.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from bench.systems import Mufs
from mufs.test.support.netns import LabError
from mufs.test.support.processes import CHECKOUT, Installation

ENVIRONMENTS = CHECKOUT / "build" / "revisions"
"""Has a directory for each commit that was installed."""
INSTALL_TIMEOUT = 900.0
"""Seconds for each step; packages may have to be downloaded."""


def commit(revision: str) -> str:
    """The hash of the commit that git knows by this name; raises `LabError` if there is none."""
    name = f"{revision}^{{commit}}"
    try:
        return _git("rev-parse", "--verify", "--quiet", "--end-of-options", name)
    except LabError:
        raise LabError(f"git knows no revision {revision!r} in {CHECKOUT}") from None


def installed(commit: str) -> Installation:
    """Install a commit, unless it is installed; raises `LabError` if that fails."""
    environment = ENVIRONMENTS / commit
    complete = environment / "complete"
    if not complete.exists():
        print(f"installing {commit} in {environment}", flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="mufs-bench-") as directory:
            archive = Path(directory) / "archive.tar"
            _git("archive", f"--output={archive}", commit)
            tree = Path(directory) / "tree"
            with tarfile.open(archive) as members:
                members.extractall(tree, filter="data")
            _run(sys.executable, "-m", "venv", str(environment))
            _run(str(environment / "bin/pip"), "install", "--quiet", str(tree))
        complete.touch()
    return Installation(str(environment / "bin/twistd"))


def mufs_at(revision: str) -> type[Mufs]:
    """The system that a revision is; raises `LabError` if there is none, or it does not install."""
    found = commit(revision)

    class Other(Mufs):
        name = f"mufs@{_git('describe', '--always', found)}"
        installation = installed(found)

    return Other


def mufs_with(options: str) -> type[Mufs]:
    """This revision of mUFS, with a server that has these options."""

    class Other(Mufs):
        name = f"mufs@{options}"
        server_options = tuple(shlex.split(options))

    return Other


def _git(*arguments: str) -> str:
    return _run("git", "-C", str(CHECKOUT), *arguments).strip()


def _run(*command: str) -> str:
    """Run a command, and return its output; raises `LabError` with the last line of its errors."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT,
            # pip would take what is on PYTHONPATH for installed.
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(str(error)) from None
    if done.returncode:
        *_, last = ["", *done.stderr.strip().split("\n")]
        raise LabError(f"{' '.join(command)}: {last}")
    return done.stdout
