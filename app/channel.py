"""Messages with arrays over a pipe between processes.

The seam for another transport: whatever carries `(message, arrays)` both ways can replace it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
NOTHING: Mapping[str, Array] = {}


def send(connection: Connection, message: Any, arrays: Mapping[str, Array] = NOTHING) -> None:
    """Writes a message, then each array's bytes, uncopied where they are contiguous.

    Raises OSError where the other side has gone.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    layout = [(name, array.dtype.str, array.shape) for name, array in contiguous.items()]
    connection.send_bytes(pickle.dumps((message, layout)))
    for array in contiguous.values():
        connection.send_bytes(_raw(array))


def receive(connection: Connection) -> tuple[Any, dict[str, Array]]:
    """Reads what `send` wrote. Raises EOFError or OSError where the other side has gone."""
    message, layout = pickle.loads(connection.recv_bytes())
    arrays = {}
    for name, dtype, shape in layout:
        array = np.empty(shape, dtype)
        connection.recv_bytes_into(_raw(array))
        arrays[name] = array
    return message, arrays


def _raw(array: Array) -> Any:
    """The array's own memory as bytes."""
    return array.reshape(-1).view(np.uint8)
