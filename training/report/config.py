"""How much the report measures and shows."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReportConfig:
    """Stage 4: acceptance and report."""

    images: int = 6  # clean test images that noise is put on, and noisy test images measured of each set
    side: int = 256  # larger images are cropped to their middle: BM3D takes seconds for each
    levels: tuple[float, ...] = (5.0, 10.0, 15.0, 25.0, 35.0, 50.0)  # of white noise, grey levels of 255
    draws: int = 2  # noise laws drawn from the learned population for each clean image
    panels: int = 1  # noisy images shown of each set
    panel_side: int = 192  # pixels of each picture: the middle of the image
    name_sets: bool = False  # name sets as the audit does, by folder, not by number: only where folders name nobody
    alone: dict[str, str] = field(default_factory=dict)  # "S1", "S2" -> run folder trained on that stream alone
    scores: str = ""  # file that keeps BM3D's scores from one run to the next; default: in the report's folder

    def __post_init__(self) -> None:
        if self.images < 1 or self.side < 48 or self.draws < 1 or self.panels < 1:
            raise ValueError("report: images, draws and panels must be at least 1, side at least 48")
        if unknown := set(self.alone) - {"S1", "S2"}:
            raise ValueError(f"report.alone: {sorted(unknown)[0]!r} is neither S1 nor S2")
