"""Every error that the product raises on purpose below the service.

    MedRestoreError
    ├── ImageError               the bytes or pixels that were sent
    │   ├── UnknownFormat        not a format that is read here
    │   ├── CorruptImage         the format is known, the content is damaged or cut short
    │   ├── UnsupportedImage     valid, but out of scope (`reason` says why, as a stable slug)
    │   ├── NonFinitePixels      NaN or infinity among the pixels
    │   └── ImageTooLarge        over a limit, found from the header before decoding
    ├── OptionError              an option of the call is out of range or contradicts another
    └── BundleError              a model bundle
        ├── BundleNotFound       no bundle of that name, version or task
        └── BundleInvalid        manifest, checksum or self-test does not hold

Messages say what was wrong and what to do. They never contain pixel values or patient data.
"""

from typing import Literal


class MedRestoreError(Exception):
    """Base of all deliberate errors; `str(error)` is fit to be shown to the caller."""


class ImageError(MedRestoreError):
    """Something about the image that was handed in; `reason` says what, as a stable slug."""

    reason: str = "image"


class UnknownFormat(ImageError):
    """The bytes are not a format that is read here."""

    reason = "unknown_format"


class CorruptImage(ImageError):
    """The format was recognised, but the content is damaged; truncated where less is there than it says."""

    def __init__(self, message: str, reason: Literal["corrupt", "truncated"] = "corrupt") -> None:
        super().__init__(message)
        self.reason: str = reason


class UnsupportedImage(ImageError):
    """A valid file whose kind of content is out of scope."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NonFinitePixels(ImageError):
    """NaN or infinity among the pixels."""

    reason = "non_finite_pixels"


class ImageTooLarge(ImageError):
    """Bytes, pixels or frames over the limit, judged from the header alone."""

    reason = "too_large"


class OptionError(MedRestoreError):
    """An option of a call is out of range or contradicts another."""


class BundleError(MedRestoreError):
    """Something about a model bundle."""


class BundleNotFound(BundleError):
    """No bundle of that name, version or task."""


class BundleInvalid(BundleError):
    """A bundle whose manifest, checksums or self-test does not hold."""
