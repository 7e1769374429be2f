"""
Fuzzing with atheris: `make fuzz`::

    python -m mufs.test.fuzz [--minutes M] [TARGET ...]
    python -m mufs.test.fuzz --repeat FILE

Runs each target of C{targets.py} in its own process for M minutes (10 by default). The corpus is
kept in C{.fuzz/TARGET} for the next run; inputs that fail are written to C{.fuzz/found}, and the
exit status is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

HOME = Path(".fuzz")
FOUND = HOME / "found"
INPUT_TIMEOUT = 20
"""Seconds after which an input fails."""


def _fuzz(name: str, options: list[str]) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["mufs"]):
        from mufs.test.support.targets import TARGETS
    from twisted.logger import globalLogBeginner

    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    corpus = HOME / name
    corpus.mkdir(parents=True, exist_ok=True)
    FOUND.mkdir(exist_ok=True)
    for seed in TARGETS[name].seeds():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    options += [
        f"-artifact_prefix={FOUND}/{name}-",
        f"-timeout={INPUT_TIMEOUT}",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[name].run)
    atheris.Fuzz()


def _run(name: str, minutes: float) -> bool:
    """Fuzz one target in its own process, print the result, and return whether none failed."""
    command = [sys.executable, "-m", __spec__.name, "--here", name, str(int(minutes * 60))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    output = done.stdout + done.stderr
    found = re.findall(r"Test unit written to (\S+)", output)
    figures = [
        re.findall(pattern, output)
        for pattern in (
            r"number_of_executed_units: (\d+)",
            r"cov: (\d+)",
            r"ft: (\d+)",
            r"rss: (\d+)Mb",
        )
    ]
    inputs, covered, features, memory = (each[-1] if each else "?" for each in figures)
    print(
        f"{name}: {inputs} inputs, {covered} edges and {features} features covered, "
        f"{memory} MiB, {'nothing found' if not done.returncode else 'stopped'}",
        flush=True,
    )
    if done.returncode:
        print(done.stdout.partition("=== Uncaught")[2] or done.stderr[-2000:])
        for path in found:
            print(f"{name}: to repeat: make fuzz REPEAT={path}")
    return not done.returncode


def main() -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(prog=__spec__.name)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target")
    parser.add_argument("--repeat", type=Path, help="an input that was found")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    if options.here:
        _fuzz(options.here[0], [f"-max_total_time={options.here[1]}"])
    from mufs.test.support.targets import TARGETS

    if options.repeat:
        TARGETS[options.repeat.name.partition("-")[0]].run(options.repeat.read_bytes())
        print(f"{options.repeat}: nothing is wrong")
        return 0
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)} (there are {', '.join(TARGETS)})")
    results = [_run(name, options.minutes) for name in options.targets or TARGETS]
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
