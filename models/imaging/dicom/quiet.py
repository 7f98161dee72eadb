"""Keeps third parties quiet and their exceptions inside while DICOM is read or written.

pydicom warns and logs about every oddity of a file and quotes the value, which may identify a
patient; gdcm writes to the standard error stream. What matters about a file is said by our errors.
"""

from __future__ import annotations

import importlib
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from models.errors import CorruptImage, MedRestoreError

try:
    gdcm: Any = importlib.import_module("gdcm")
except ImportError:
    gdcm = None

for _name in ("pydicom", "pylibjpeg", "openjpeg"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
if gdcm is not None:
    for _switch in ("DebugOff", "WarningOff", "ErrorOff"):
        getattr(gdcm.Trace, _switch)()


class _Silence:
    """`warnings.catch_warnings` that several threads may hold at once.

    The filters are process-wide: the first thread in saves them, the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._saved: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")
            self._holders += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._saved is not None:
                self._saved.__exit__(None, None, None)
                self._saved = None


_SILENCE = _Silence()


@contextmanager
def quiet(action: str) -> Iterator[None]:
    """Silences warnings and turns any foreign exception into CorruptImage.

    The foreign message is dropped on purpose: pydicom quotes attribute values. Its type is named.
    """
    with _SILENCE:
        try:
            yield
        except (MedRestoreError, MemoryError):
            raise
        except Exception as exc:  # noqa: BLE001  (decoders of damaged files raise anything)
            raise CorruptImage(f"the DICOM object cannot be {action}: {type(exc).__name__}") from None
