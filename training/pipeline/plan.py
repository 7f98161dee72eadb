"""What kind of run it is: its stages in their order, what each of them reads, and who works on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Outside:
    """Something that a stage reads from outside of the run's folder, named by an option of the command."""

    stage: str
    what: str  # as a message calls it
    required: bool = True
    file: bool = False  # else a folder


@dataclass(frozen=True)
class Plan:
    """The stages of one kind of run."""

    task: str  # of the bundles that it makes
    command: str  # that goes on with a run: `<command> --out OUT`
    inputs: Mapping[str, tuple[str, ...]]  # stage, in order -> files and folders of earlier stages that it reads
    outside: Mapping[str, Outside]  # option without its dashes -> what it names
    together: frozenset[str]  # these train, with all processes; the others are the first one's
    private: Mapping[str, tuple[str, ...]]  # settings that may name folders or files of a hospital, by section
    remade: frozenset[str] = frozenset()  # take no time: made anew, without being asked, where they would differ

    @property
    def stages(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(self.inputs)


DENOISER = Plan(
    task="denoise",
    command="medrestore pipeline run",
    inputs={
        "audit": (),  # reads the folders of the hospital
        "preliminary": ("audit/audit.json", "audit/noisy"),
        "synthesis": ("audit/audit.json", "audit/noisy", "preliminary/table.json", "preliminary/images"),
        "profound": (
            "audit/audit.json",
            "audit/noisy",
            "audit/clean",
            "preliminary/table.json",
            "preliminary/images",
            "synthesis/population.json",
            "synthesis/laws.json",
        ),
        "report": (
            "audit/audit.json",
            "audit/noisy",
            "audit/clean",
            "preliminary/table.json",
            "preliminary/images",
            "synthesis/population.json",
            "synthesis/synthesis.json",
            "profound/run.json",
            "profound/estimate/weights.pt",
            "profound/restore/weights.pt",
        ),
    },
    outside={
        "noisy": Outside("audit", "the folder of noisy images"),
        "clean": Outside("audit", "the folder of clean images"),
    },
    together=frozenset({"preliminary", "profound"}),
    private={
        "audit": ("include", "exclude", "rules", "clean_include", "clean_exclude", "clean_test"),
        "profound": ("start",),
        "report": ("alone", "scores"),
    },
)
