"""Where a training run computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Where a run computes: it decides how fast, not what comes out."""

    accelerator: str = "auto"  # "cpu", "cuda" or "auto"
    devices: int = 1  # processes, or GPUs, on each machine
    nodes: int = 1
    threads: int = 0  # of one process on the CPU; 0 leaves it to PyTorch
    workers: int = 1  # processes that prepare samples, for each process that trains

    def __post_init__(self) -> None:
        for name in ("devices", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1")
        if self.threads < 0 or self.workers < 0:
            raise ValueError("--threads and --workers must not be negative")
