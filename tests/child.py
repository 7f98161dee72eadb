"""`medrestore` in a forked process, to be killed and waited for: a child starts at once, with all that is imported.

A child computes with one thread of torch: those that the process before the fork may have had are not there any more.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import torch

import medrestore

LIMIT_S = 300
MACHINE = ("--workers", "0", "--threads", "1", "--accelerator", "cpu")  # of a training that forks nothing itself


class Child:
    """`medrestore` in a forked process; what it says goes to a file."""

    started: ClassVar[list[Child]] = []

    def __init__(self, log: Path, *words: object) -> None:
        self.log = log
        self.pid = os.fork()
        self.started.append(self)
        if self.pid == 0:
            status = 99
            try:
                sys.stdout = sys.stderr = log.open("w", buffering=1)
                torch.set_num_threads(1)
                signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
                status = medrestore.main([str(word) for word in words])
            except BaseException:  # noqa: BLE001 - whatever it is, the test must say it
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """The exit status; minus the signal's number where one ended it."""
        stop = time.monotonic() + limit_s
        while time.monotonic() < stop:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        self.close()
        raise AssertionError(f"still running after {limit_s} s:\n{self.text}")

    def close(self) -> None:
        """Ends the process where a test did not."""
        with suppress(ChildProcessError, ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; fails where the process ends, or takes too long, before."""
        stop = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < stop, self.text
            assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), self.text
            time.sleep(0.005)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")
