"""What `GET /pacs/route` and the feeds in `GET /pacs/status` tell."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RouteQuery(BaseModel):
    """Options of `GET /pacs/route`."""

    model_config = ConfigDict(extra="forbid")

    pacs: str | None = Field(default=None, max_length=32, description="of this PACS alone")
    limit: int = Field(default=20, ge=1, le=100, description="newest series of each PACS")


class RoutedSeries(BaseModel):
    """What the rules would do with one series."""

    study: str = Field(description="StudyInstanceUID")
    series: str = Field(description="SeriesInstanceUID")
    instances: int
    tags: dict[str, str] = Field(description="what rules may ask for, by DICOM keyword; those that have a value")
    decision: str = Field(
        description="`taken`, `unmatched`, or the kind that no rule may take",
        examples=["taken", "unmatched", "ours", "derived", "localizer", "screen", "report", "unsupported"],
    )
    route: str | None = Field(description="the route that takes it")
    reason: str
    unmet: dict[str, str] = Field(description="routes that were asked before in vain, and why")


class RoutedPacs(BaseModel):
    """The newest series of one PACS."""

    pacs: str
    problem: str | None = Field(description="why its series cannot be listed")
    series: list[RoutedSeries]


class RouteReport(BaseModel):
    """Answer of `GET /pacs/route`: nothing was started."""

    problem: str | None = Field(description="why the rules file is not in force as it is now")
    routes: list[str] = Field(description="names of the routes that are in force, in order")
    pacs: list[RoutedPacs]


class FeedStatus(BaseModel):
    """How far the new series of a PACS have been dealt with."""

    read_s_ago: float | None = Field(description="when that was looked at last; null: not yet")
    lag: int = Field(description="changes, or series of a PACS without a feed, that are still to be dealt with")
    problem: str | None = Field(description="why it cannot be looked at")
