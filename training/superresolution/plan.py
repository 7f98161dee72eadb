"""The stages of `medrestore train superresolve`."""

from __future__ import annotations

from typing import Any

from training.pipeline.plan import DENOISER, Outside, Plan

TASK = "superresolve"
LEARNED = (
    "audit/audit.json",
    "audit/high",
    "degradation/mixture.json",
    "degradation/population.json",
    "degradation/degradation.json",
    "degradation/degradation.pt",
)
RESTORED = ("restore/run.json", "restore/restore/weights.pt")
ADVERSARIAL = ("adversarial/run.json", "adversarial/restore/weights.pt")


def superresolver(adversarial: bool) -> Plan:
    """The plan of a run with, or without, the adversarial variant beside the network."""
    middle = {"adversarial": (*LEARNED, *RESTORED)} if adversarial else {}
    return Plan(
        task=TASK,
        command="medrestore train superresolve",
        inputs={
            "audit": (),  # reads the folders of the hospital
            "degradation": ("audit/audit.json", "audit/high", "audit/low"),
            "restore": LEARNED,
            **middle,
            "report": (*LEARNED, "audit/low", *RESTORED, *(ADVERSARIAL if adversarial else ())),
        },
        outside={
            "hr": Outside("audit", "the folder of high-resolution images"),
            "lr": Outside("audit", "the folder of low-resolution images", required=False),
            "noise": Outside("degradation", "the population of a denoiser's run", required=False, file=True),
        },
        together=frozenset({"degradation", "restore", "adversarial"}),
        private={
            "audit": ("include", "exclude", "low_include", "low_exclude", "rules", "test"),
            "restore": ("start", "ensemble.features"),
            "adversarial": ("ensemble.features",),
            "report": ("terms",),
        },
        remade=frozenset({"report"}),
    )


def plan_of(record: dict[str, Any]) -> Plan:
    """The plan of a run by its record, whichever kind it is."""
    if record.get("task", DENOISER.task) == DENOISER.task:
        return DENOISER
    return superresolver(record["config"]["adversarial"]["train"])
