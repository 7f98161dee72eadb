"""What a site decides about the derived DICOM objects that it stores. None of it changes a pixel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from models.errors import OptionError

ImageType = Literal["PRIMARY", "SECONDARY"]
Qualification = Literal["PRODUCT", "RESEARCH", "SERVICE"]
LARGEST_IS = 2**31 - 1  # of an integer string (PS3.5 6.2)


@dataclass(frozen=True)
class Policy:
    """How derived objects are labelled, and what they keep. Raises OptionError for what DICOM does not know."""

    image_type: ImageType = "SECONDARY"  # ImageType value 2, where the class leaves a choice (PS3.3 C.7.6.1.1.2)
    number_offset: int = 9000  # between the SeriesNumber of the source and that of the derived series
    qualification: Qualification = "RESEARCH"  # ContentQualification (C.12.1, C.8.13.2)
    private_creators: tuple[str, ...] = ()  # whose private attributes stay, by Private Creator, letter by letter

    def __post_init__(self) -> None:
        if self.image_type not in get_args(ImageType):
            raise OptionError(f"image_type must be one of {', '.join(get_args(ImageType))}")
        if not 0 <= self.number_offset <= LARGEST_IS:
            raise OptionError(f"number_offset must lie between 0 and {LARGEST_IS}")
        if self.qualification not in get_args(Qualification):
            raise OptionError(f"qualification must be one of {', '.join(get_args(Qualification))}")
        if not all(creator == creator.strip() != "" for creator in self.private_creators):
            raise OptionError("private_creators are names without spaces around them")

    @property
    def choices(self) -> dict[str, Any]:
        """What differs from the defaults; the order of the creators makes no difference."""
        mine, usual = asdict(self), asdict(DEFAULT)
        mine["private_creators"] = tuple(sorted(set(self.private_creators)))
        return {name: value for name, value in mine.items() if value != usual[name]}


DEFAULT = Policy()
