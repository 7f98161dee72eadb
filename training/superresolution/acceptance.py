"""Whether a super-resolver may become the default: what is asked of it, measured on held-back images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.degradation.config import DegradationConfig
from training.evaluation.upscaler import Upscale
from training.report.acceptance import Row, passed, row
from training.superresolution.score import BICUBIC, DRAWN, MODEL, constancy

SHIFT = 0.05  # high-resolution pixels
CONSTANT = 0.5 / 255  # unit scale: half a grey level of 8 bits
CONSISTENT_DB, LOOSE_DB = 45.0, 28.0  # trained on bicubic reduction alone; on blur and noise, which it is to remove
DECISIVE = ("better than bicubic", "grid", "consistency", "constant")
VARIANT_LOSS_DB = 3.0  # that an adversarial variant may lie below bicubic interpolation
NONE = "no high-resolution image was held back"
Table = Sequence[Mapping[str, Any]]


def accept(
    scores: Table, mixture: DegradationConfig, models: Mapping[str, Upscale], scale: int
) -> dict[str, dict[str, Any]]:
    """For each model its acceptance table, and whether it passed; the variant is asked for less."""
    found = {}
    for name, model in models.items():
        mine = [line for line in scores if line["method"] == name]
        rows = [
            *(gain_rows(mine, mixture) if name == MODEL else [variant_row(mine)]),
            shift_row(mine),
            consistency_row(mine, mixture, name == MODEL),
            constant_row(constancy(model, scale)),
        ]
        decisive = DECISIVE if name == MODEL else DECISIVE[1:]
        found[name] = {"rows": rows, "passed": passed(rows, decisive)}
    return found


def gain_rows(scores: Table, mixture: DegradationConfig) -> list[Row]:
    """Better than bicubic interpolation on every image: reduced by bicubic, if it knows that, and as it was taught."""
    asked = "PSNR above bicubic interpolation, every image scored"
    rows = []
    for kind, known in ((BICUBIC, mixture.bicubic > 0), (DRAWN, True)):
        mine = [line for line in scores if line["degradation"] == kind]
        if mine:
            worst = min(line["smallest_gain"] for line in mine)
            mean = sum(line["gain"] * line["images"] for line in mine) / sum(line["images"] for line in mine)
            text = f"{mean:+.2f} dB on average, {worst:+.2f} dB at worst"
            note = "" if known else "bicubic reduction had no part in its training"
            rows.append(row(f"better than bicubic, {kind}", asked, text, worst > 0 if known else None, note))
    decisive = next((one for one in rows if one["verdict"] != "not applicable"), None)
    if decisive is None:
        return [row("better than bicubic", asked, "", None, NONE)]
    return [{**one, "check": "better than bicubic"} if one is decisive else one for one in rows]


def variant_row(scores: Table) -> Row:
    """What invented texture costs."""
    asked = f"mean PSNR at most {VARIANT_LOSS_DB:g} dB below bicubic interpolation, every set"
    if not scores:
        return row("fidelity", asked, "", None, NONE)
    worst = min(line["gain"] for line in scores)
    return row("fidelity", asked, f"{worst:+.2f} dB at worst", worst >= -VARIANT_LOSS_DB)


def shift_row(scores: Table) -> Row:
    """Nothing moves: against bicubic interpolation, whose grid is right by construction.

    A wrong grid is wrong in every image; of one alone, with edges that run one way, the shift along them is a guess.
    """
    asked = f"no shift above {SHIFT} pixels, median of every set"
    mine = [line["shift"] for line in scores if line["degradation"] == BICUBIC]
    if not mine:
        return row("grid", asked, "", None, NONE)
    return row("grid", asked, f"at most {max(mine):.3f} pixels", max(mine) <= SHIFT)


def consistency_row(scores: Table, mixture: DegradationConfig, plain: bool) -> Row:
    """The result, reduced again, is the image."""
    floor = CONSISTENT_DB if plain and not (mixture.blind or mixture.pdm) else LOOSE_DB
    asked = f"result, reduced again, within {floor:g} dB of its input, mean of every set (bicubic)"
    mine = {line["set"]: line["consistency"] for line in scores if line["degradation"] == BICUBIC}
    if not mine:
        return row("consistency", asked, "", None, NONE)
    worst = min(mine, key=mine.__getitem__)
    return row("consistency", asked, f"at least {mine[worst]:.1f} dB ({worst})", mine[worst] >= floor)


def constant_row(found: float) -> Row:
    """Constant in, constant out, and of the right size."""
    asked = f"a constant image stays constant to {CONSTANT:.4f} of the range"
    return row("constant", asked, f"largest difference {found:.1e}", found <= CONSTANT)
