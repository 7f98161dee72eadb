"""Where jobs keep their files: a folder for each, private to the service's user, within a budget."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.errors import DiskFull, JobsUnavailable

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600


class JobFolder:
    """The folder of all jobs. One service at a time holds it, from `open` until `close`."""

    def __init__(self, root: Path, budget: int, keep_free: int) -> None:
        """`budget` bounds the bytes of all files, `keep_free` is what stays free on the disk."""
        self.root = root
        self._budget = budget
        self._keep_free = keep_free
        self._promised = 0  # bytes that are on their way here
        self._lock: int | None = None

    def open(self) -> None:
        """Makes the folder where there is none, and takes it. Raises JobsUnavailable."""
        try:
            self.root.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise JobsUnavailable("another service works on the folder of jobs; give each its own") from None
        except OSError as exc:
            raise JobsUnavailable(f"the folder of jobs cannot be used: {exc.strerror}") from exc

    def close(self) -> None:
        """Lets another service take it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def of(self, id: str) -> Path:
        """A job's own folder."""
        return self.root / "files" / id

    def make(self, id: str) -> Path:
        folder = self.of(id)
        folder.parent.mkdir(PRIVATE_FOLDER, exist_ok=True)
        folder.mkdir(PRIVATE_FOLDER)
        return folder

    def delete(self, id: str) -> None:
        """Deletes a job's files, those that are there."""
        shutil.rmtree(self.of(id), ignore_errors=True)

    def delete_strangers(self, known: set[str]) -> None:
        """Deletes what belongs to no job: uploads that were cut off."""
        for folder in self.root.glob("files/*"):
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def promise(self, bytes: int) -> Iterator[None]:
        """Holds room for files that are about to grow by so many bytes. Raises DiskFull."""
        used = self._promised + _bytes_below(self.root)
        if used + bytes > self._budget:
            raise DiskFull(f"the jobs hold {used} of the {self._budget} bytes that they may hold")
        if shutil.disk_usage(self.root).free - self._promised - bytes < self._keep_free:
            raise DiskFull(f"less than {self._keep_free} bytes would be left free on the jobs' disk")
        self._promised += bytes
        try:
            yield
        finally:
            self._promised -= bytes


def _bytes_below(root: Path) -> int:
    """Bytes of all files below a folder; what goes meanwhile counts nothing."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def private_file(path: Path) -> Path:
    """An empty file that nobody else can read, for others to write to."""
    path.unlink(missing_ok=True)
    path.touch(PRIVATE_FILE)
    return path
