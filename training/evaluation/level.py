"""One model over many levels, beside models that were each trained at a single one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tqdm import tqdm

from training.evaluation.case import degrade, white
from training.evaluation.image import HeldBack
from training.evaluation.score import Scores, restored_score, score
from training.evaluation.table import Row, Table, mean
from training.restorer import Restorer

LEVELS = (2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 75.0)


def level_table(
    images: Iterable[HeldBack],
    restorers: Mapping[str, Restorer],
    specialists: Mapping[float, Restorer],
    levels: Iterable[float] = LEVELS,
) -> Table:
    """PSNR and SSIM per set and level (white, not clipped), and how far each restorer is behind the specialist.

    `specialists` are by the level in grey levels of 255 that each was trained at; their levels are added.
    """
    everything = sorted({*levels, *specialists})
    found: dict[tuple[str, float], dict[str, list[Scores]]] = {}
    for image in tqdm(images, desc="levels", mininterval=2):
        for level in everything:
            case = degrade(image, white(level))
            methods = found.setdefault((image.set, level), {})
            methods.setdefault("noisy", []).append(score(case.noisy, case.clean))
            for name, restorer in restorers.items():
                methods.setdefault(name, []).append(restored_score(restorer, case))
            if level in specialists:
                methods.setdefault("specialist", []).append(restored_score(specialists[level], case))
    return [level_row(name, level, methods, restorers) for (name, level), methods in found.items()]


def level_row(name: str, level: float, methods: Mapping[str, list[Scores]], restorers: Iterable[str]) -> Row:
    row: Row = {"set": name, "sigma": level, "images": len(methods["noisy"])}
    row |= {method: mean(scores) for method, scores in methods.items()}
    if "specialist" in row:
        row |= {f"{restorer} behind": row["specialist"][0] - row[restorer][0] for restorer in restorers}
    return row
