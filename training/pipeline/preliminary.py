"""Stage 1: learns to denoise from noisy images alone; leaves their noise and a preliminary denoised set.

Reads `audit/`; writes `preliminary/`: the phases' folders with checkpoints, `weights.pt`, `log.csv`, one plane
per image, `table.json` and `preliminary.json`. Stopped at any moment, a second call goes on.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn
from tqdm import tqdm

from models.networks.blindness import own_derivatives
from training.checkpoint import load_checkpoint
from training.config import build
from training.loop import Log
from training.pipeline.learner import PHASES, Preliminary, PreliminaryConfig, digest_of, learn
from training.pipeline.record import (
    PRELIMINARY_IMAGES,
    Audit,
    NoiseRow,
    NoisyImage,
    read_audit,
    read_json,
    read_plane,
    write_json,
    write_plane,
    write_table,
)
from training.pipeline.restoration import restore
from training.train import save_weights

FOLDER, RECORD, ROWS = "preliminary", "preliminary.json", "rows"
WEIGHTS, LOG = "weights.pt", "log.csv"
PROOF_SIDE = 41  # pixels
PROOF_WORK = 2e7  # parameters times pixels proven: all 1,681 pixels of a small network, fewer of a large one


def run(
    out: Path,
    config: PreliminaryConfig,
    *,
    seed: int,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    threads: int = 0,
    workers: int = 1,
) -> None:
    """Runs stage 1 in the run's folder, in all processes of the machine.

    Raises ValueError where the audit has no image to learn from, or a checkpoint is of another configuration.
    """
    if threads:
        torch.set_num_threads(threads)
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, precision=config.precision)  # type: ignore[arg-type]
    fabric.launch()
    folder = out / FOLDER
    started = time.monotonic()
    model = learn(out, folder, config, seed, fabric, workers)
    learned = time.monotonic()
    if fabric.is_global_zero:
        save_weights(model, folder / WEIGHTS)
        join_logs(folder)
    audit, digest = read_audit(out), digest_of(out, config, seed)
    restore_all(out, audit, model, config, digest, fabric)
    fabric.barrier()
    if fabric.is_global_zero:
        shares = collect(out, audit)
        seconds = {"learning": training_seconds(folder, digest), "this_call": round(learned - started, 1)}
        seconds["restoring"] = round(time.monotonic() - learned, 1)
        write_json(folder / RECORD, summary(audit, model, config, seed, shares, seconds, str(fabric.device)))
    fabric.barrier()


def join_logs(folder: Path) -> None:
    """`log.csv` of all phases, steps counted on, keys as in "joint.loss"."""
    path, first = folder / LOG, 0
    path.unlink(missing_ok=True)
    log = Log(path, 0)
    for phase in PHASES:
        with (folder / phase / LOG).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            log.write(first + int(row["step"]), {f"{phase}.{row['key']}": float(row["value"])})
        first += max((int(row["step"]) for row in rows), default=0)


def training_seconds(folder: Path, digest: str) -> float:
    """What all phases took together, over all calls."""
    states = (load_checkpoint(folder / phase, digest) for phase in PHASES)
    return round(sum(state["seconds"] for state in states if state), 1)


def restore_all(
    out: Path, audit: Audit, model: Preliminary, config: PreliminaryConfig, digest: str, fabric: Fabric
) -> None:
    """This process's share of the images; those that an earlier call finished are left as they are."""
    learned = {image.id: number for number, image in enumerate(audit.noisy("train"))}
    mine = audit.images[fabric.global_rank :: fabric.world_size]
    for image in tqdm(mine, desc="restore", disable=not fabric.is_global_zero, mininterval=2):
        path = row_path(out, image)
        if path.exists() and read_json(path)["digest"] == digest:
            continue
        record = audit.sets[image.set]
        result = restore(model, image, read_plane(out, image.file), record, learned.get(image.id), config)
        write_plane(out / PRELIMINARY_IMAGES / f"{image.id}.npy", result.image)
        write_json(
            path,
            {"digest": digest, "row": dataclasses.asdict(result.row), "residual_share": result.residual_share},
        )


def row_path(out: Path, image: NoisyImage) -> Path:
    """The file that says that an image is done; written after its plane."""
    return out / FOLDER / ROWS / f"{image.id}.json"


def collect(out: Path, audit: Audit) -> dict[str, float]:
    """Writes the table; returns the median residual share of each set."""
    records = [read_json(row_path(out, image)) for image in audit.images]
    write_table(out, [build(NoiseRow, record["row"], "row") for record in records])
    shares = {}
    for name in audit.sets:
        found = [r["residual_share"] for r, i in zip(records, audit.images, strict=True) if i.set == name]
        shares[name] = round(float(torch.tensor(found).median()), 4) if found else math.nan
    return {name: share for name, share in shares.items() if not math.isnan(share)}


def proof(network: nn.Module, seed: int) -> dict[str, Any]:
    """Largest derivative of an output by its own pixel, in float64, at the weights as they are: exactly 0 if blind.

    Over a 41 x 41 image, at all pixels of a small network, at corners, borders and a lattice between for a large one.
    """
    image = torch.rand(1, 1, PROOF_SIDE, PROOF_SIDE, generator=torch.Generator().manual_seed(seed))
    affordable = PROOF_WORK / sum(p.numel() for p in network.parameters())
    along = min(PROOF_SIDE, max(3, math.isqrt(int(affordable))))
    places = sorted({round(i * (PROOF_SIDE - 1) / (along - 1)) for i in range(along)})
    own, other = own_derivatives(network, image, [(row, column) for row in places for column in places])
    return {"own_pixel": own, "other_pixels": other, "side": PROOF_SIDE, "pixels": len(places) ** 2}


def summary(
    audit: Audit,
    model: Preliminary,
    config: PreliminaryConfig,
    seed: int,
    shares: dict[str, float],
    seconds: dict[str, float],
    device: str,
) -> dict[str, Any]:
    """What `preliminary.json` says. Raises ArithmeticError where the network sees the pixel it predicts."""
    blindness = proof(model.network, seed)
    if blindness["own_pixel"] != 0.0:
        raise ArithmeticError(f"the network is not blind to its own pixel: derivative {blindness['own_pixel']:.3g}")
    strides = {
        name: {"training": record.stride, "inference": min(record.stride, config.inference_stride)}
        for name, record in audit.sets.items()
    }
    return {
        "network": {"name": config.network, **config.options},
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "noise": config.noise,
        "likelihood": config.likelihood,
        "steps": {phase: getattr(config, phase).steps for phase in PHASES},
        "strides": strides,
        "images": {split: len(audit.noisy(split)) for split in ("train", "test")},
        "blind_spot": blindness,
        "residual_share": shares,
        "seconds": seconds,
        "device": device,
    }
