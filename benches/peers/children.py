"""Runs a program and measures it from outside: wall time and peak resident memory."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass


class ChildError(Exception):
    """One line for the user."""


@dataclass
class Finished:
    """What a program printed, the seconds from its start to its end, and the most bytes it had resident."""

    stdout: str
    seconds: float
    peak_bytes: int


def run(command, env=None):
    """Runs a program to its end; its errors become a `ChildError`."""
    command = [str(part) for part in command]
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
            )
        except OSError as error:
            raise ChildError(f"cannot run {command[0]}: {error.strerror}") from error
        try:
            stdout = child.stdout.read()
            # Unlike `wait`, this says what the child used.
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        child.stdout.close()
        if child.returncode != 0:
            errors.seek(0)
            lines = errors.read().strip().splitlines()
            said = lines[-1] if lines else "it said nothing"
            raise ChildError(f"{' '.join(command)} failed with {child.returncode}: {said}")
    # Linux counts in units of 1024 bytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(stdout, seconds, usage.ru_maxrss * unit)
