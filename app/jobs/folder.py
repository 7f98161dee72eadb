"""Where jobs keep their files: a folder for each, private to the service's user, within a budget."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from app.errors import DiskFull, JobsUnavailable
from app.offload import whole
from models.errors import ImageTooLarge

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
STEPS = 256  # in which a promise of unknown size grows to the whole budget


class JobFolder:
    """The folder of all jobs. One service at a time holds it, from `open` until `close`."""

    def __init__(self, root: Path, budget: int, keep_free: int) -> None:
        """`budget` bounds the bytes of all files, `keep_free` is what stays free on the disk."""
        self.root = root
        self._budget = budget
        self._keep_free = keep_free
        self._promised: dict[str, int] = {}  # bytes that a job's folder may come to hold
        self._booking = threading.Lock()
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
        """Deletes what belongs to no job: uploads that were cut off. Raises JobsUnavailable."""
        try:
            for folder in self.root.glob("files/*"):
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError as exc:
            raise JobsUnavailable(f"the folder of jobs cannot be used: {exc.strerror}") from exc

    def check(self, bytes: int) -> None:
        """Whether a job of that many bytes can ever have room. Raises ImageTooLarge."""
        if bytes > self._budget:
            raise ImageTooLarge(
                f"the job would hold {bytes} bytes on disk, its result included, and all jobs together may hold "
                f"{self._budget}: send fewer frames at a time, or have `job_disk_bytes` raised"
            )

    @asynccontextmanager
    async def promise(self, id: str, bytes: int) -> AsyncIterator[None]:
        """Holds room for a job's folder to hold so many bytes in all, those that are there included.

        Raises DiskFull, and ImageTooLarge where there never will be room.
        """
        try:
            await whole(asyncio.to_thread(self._book, id, bytes))
            yield
        finally:
            self._promised.pop(id, None)

    async def cover(self, id: str, bytes: int) -> None:
        """Promises more to a job that has been promised less, for files whose size shows as they come. Raises as
        `promise` does."""
        if bytes > self._promised[id]:
            ahead = min(bytes + self._budget // STEPS, max(bytes, self._budget))  # so that it is seldom asked for
            await whole(asyncio.to_thread(self._book, id, ahead))

    def _book(self, id: str, bytes: int) -> None:
        self.check(bytes)
        with self._booking:
            held = self._held()
            used, promised = sum(held.values()), {**self._promised, id: bytes}
            to_come = sum(max(0, most - held[each]) for each, most in promised.items())
            if used + to_come > self._budget:
                raise DiskFull(f"the jobs hold {used} of the {self._budget} bytes that they may hold")
            if shutil.disk_usage(self.root).free - to_come < self._keep_free:
                raise DiskFull(f"less than {self._keep_free} bytes would be left free on the jobs' disk")
            self._promised[id] = bytes

    def _held(self) -> Counter[str]:
        """Bytes of the files of each job, and of all other files under no name; what goes meanwhile counts nothing."""
        held: Counter[str] = Counter()
        for folder, _, names in os.walk(self.root):
            place = Path(folder).relative_to(self.root).parts
            id = place[1] if len(place) > 1 else ""
            for name in names:
                with suppress(FileNotFoundError):
                    held[id] += os.stat(os.path.join(folder, name)).st_size
        return held


def private_file(path: Path) -> Path:
    """An empty file that nobody else can read, for others to write to."""
    path.unlink(missing_ok=True)
    path.touch(PRIVATE_FILE)
    return path
