"""A file of which only so much comes into memory, whatever its elements say of their lengths."""

from __future__ import annotations

from typing import Any, BinaryIO

from models.errors import ImageTooLarge


class Measured:
    """A file of which no more than `most` bytes come into memory: in all while `counting`, else at one time."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._most = most
        self._count = 0
        self.counting = True

    def read(self, size: int = -1) -> bytes:
        """Raises ImageTooLarge instead of reading too much."""
        self._count = self._count + max(size, 0) if self.counting else size
        if size < 0 or self._count > self._most:
            raise ImageTooLarge(f"more than {self._most} bytes beside the pixels, or in one frame of them")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
