"""Tables of scores: lists of rows, shown as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
Table = list[Row]


def mean(scores: Iterable[Sequence[float]]) -> list[float]:
    """Column means of equally long rows."""
    return [float(value) for value in np.mean(np.array(list(scores), dtype=np.float64), axis=0)]


def gain(row: Row, method: str, reference: str) -> float | None:
    """PSNR of one method's [PSNR, SSIM] over another's in the same row; None where either is missing."""
    return row[method][0] - row[reference][0] if method in row and reference in row else None


def show(value: Any) -> str:
    """A cell: PSNR / SSIM of a pair, four digits of a number, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{value[0]:.2f} / {value[1]:.3f}" if len(value) == 2 else " ".join(f"{item:.2f}" for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(rows: Table) -> str:
    """Rows as a Markdown table; what is a table of its own (a dictionary) is for JSON alone."""
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if not holds_table(rows, key)]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(show(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def holds_table(rows: Table, column: str) -> bool:
    return any(isinstance(row.get(column), dict) for row in rows)


def plain(value: Any) -> Any:
    """A value that strict JSON can hold: the PSNR of equal images, which is infinite, becomes null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
