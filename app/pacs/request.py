"""What a rule says, as a request to the desk."""

from __future__ import annotations

from pydantic import ValidationError

from app.pacs.candidate import Candidate
from app.pacs.rule import Work
from app.schemas import PacsRequest
from models.errors import OptionError


def request_of(pacs: str, candidate: Candidate, work: Work) -> PacsRequest:
    """The request that a caller would make for the series. Raises OptionError for UIDs that break the standard."""
    fields = work.model_dump(include=set(Work.model_fields), exclude_none=True)
    try:
        return PacsRequest(pacs=pacs, study=candidate.study, series=candidate.series, **fields)
    except ValidationError as exc:
        raise OptionError("the series has identifiers that break the standard") from exc
