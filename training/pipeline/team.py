"""The processes of a run: this one alone, or all that Fabric or `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch

from training.machine import Machine

T = TypeVar("T")
WAIT = timedelta(days=7)  # others wait this long while the first process works alone


def launched(machine: Machine) -> Machine:
    """The machine as `torchrun` laid it out, where it started this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return machine
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = int(os.environ["WORLD_SIZE"]) // devices
    return Machine(machine.accelerator, devices, nodes, machine.threads, machine.workers)


class StageFailed(Exception):
    """Raised in all processes but the first, which says what went wrong."""


class Team:
    """Lets the first process work and decide for all."""

    def __init__(self, machine: Machine) -> None:
        self.fabric: Any = None
        if machine.threads:
            torch.set_num_threads(machine.threads)
        if machine.devices * machine.nodes > 1:
            from lightning.fabric import Fabric
            from lightning.fabric.strategies import DDPStrategy

            # The stages' own Fabrics find the processes of this one and start no others.
            self.fabric = Fabric(
                accelerator=machine.accelerator,
                devices=machine.devices,
                num_nodes=machine.nodes,
                strategy=DDPStrategy(timeout=WAIT),
            )
            self.fabric.launch()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.fabric is None or bool(self.fabric.is_global_zero)

    def alone(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process, in all of them; its exception ends all of them."""
        if self.fabric is None:
            return work()
        result: T | None = None
        error: Exception | None = None
        if self.first:
            try:
                result = work()
            except Exception as caught:  # noqa: BLE001 - raised again, once the others know
                error = caught
        result, failed = self.fabric.broadcast((result, error is not None))
        if error is not None:
            raise error
        if failed:
            raise StageFailed
        return result  # type: ignore[return-value]

    def close(self) -> None:
        """Parts from the other processes."""
        if self.fabric is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
