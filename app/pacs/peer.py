"""Settings of one PACS: where it is, how to log in, and how long to bear with it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    model_validator,
)

from app.pacs.errors import PacsDenied

CREDENTIAL_BYTES = 64 * 1024  # a file of credentials that is longer is some other file
_SALT = secrets.token_bytes(16)


def _base(text: str) -> str:
    """An http(s) URL without its final slash. Raises ValueError; credentials in a URL would get into logs."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or (parts.port or 1) > 65535:
        raise ValueError("must be an http or https URL with a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must have no user, query or fragment; user and password are settings of their own")
    return text.rstrip("/")


BaseUrl = Annotated[str, AfterValidator(_base)]
PeerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]{0,30}[a-z0-9])?$")]


class Peer(BaseModel):
    """One PACS. Files of credentials are read at each call, so that a change is taken up without a restart."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)

    url: BaseUrl = Field(description="base of its DICOMweb service, before `/studies`")
    orthanc: BaseUrl | None = Field(default=None, description="base of Orthanc's own REST API: its feed of changes")
    user: str | None = Field(default=None, pattern="^[^:]+$", description="basic authentication, with a password")
    password: SecretStr | None = Field(default=None, description="of that user")
    password_file: Path | None = Field(default=None, description="file that holds it, read at each call")
    token: SecretStr | None = Field(default=None, description="bearer authentication")
    token_file: Path | None = Field(default=None, description="file that holds it, read at each call")
    ca_file: Path | None = Field(default=None, description="certificates to trust instead of the system's, PEM")
    connect_s: PositiveFloat = Field(default=5.0, description="to connect, TLS included")
    read_s: PositiveFloat = Field(default=60.0, description="between two pieces of an answer")
    total_s: PositiveFloat = Field(default=300.0, description="for one whole answer, or one instance of a series")
    retries: NonNegativeInt = Field(default=2, description="further attempts of a call before it counts as failed")
    retry_s: PositiveFloat = Field(default=0.5, description="before the first of them; doubles, with jitter")
    connections: PositiveInt = Field(default=8, description="open at one time")
    page: PositiveInt = Field(default=500, description="instances asked for in one listing call")
    instance_bytes: PositiveInt = Field(default=2 * 1024**3, description="largest instance fetched")
    stow_items: PositiveInt = Field(default=16, description="instances in one store call")
    stow_bytes: PositiveInt = Field(default=64 * 1024**2, description="their bytes, unless one alone is larger")

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        passwords = [self.password, self.password_file]
        tokens = [self.token, self.token_file]
        if all(passwords) or all(tokens) or (any(passwords) and any(tokens)):
            raise ValueError("give one of password, password_file, token and token_file")
        if (self.user is not None) != any(passwords):
            raise ValueError("user and password (or password_file) go together")
        if self.ca_file and not all(base.startswith("https:") for base in (self.url, self.orthanc) if base):
            raise ValueError("ca_file needs https URLs")
        return self

    def authorization(self) -> dict[str, str]:
        """The header of a call, read anew. Raises PacsDenied where a file of credentials cannot be used."""
        if self.user is not None:
            pair = f"{self.user}:{_secret(self.password, self.password_file)}"
            return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
        if self.token or self.token_file:
            token = _secret(self.token, self.token_file)
            if not token.isascii():
                raise PacsDenied("credentials")
            return {"Authorization": f"Bearer {token}"}
        return {}

    def credential_mark(self) -> str:
        """Differs when the credentials do. Salted by process: it tells nothing, and is for memory, not for disk.
        Raises what `authorization` does."""
        return hmac.new(_SALT, repr(self.authorization()).encode(), hashlib.sha256).hexdigest()


def _secret(value: SecretStr | None, path: Path | None) -> str:
    if path is None:
        return value.get_secret_value() if value else ""
    try:
        with path.open("rb") as file:
            text = file.read(CREDENTIAL_BYTES + 1).decode().strip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise PacsDenied("credentials") from exc
    if not text or len(text) > CREDENTIAL_BYTES or not text.isprintable():
        raise PacsDenied("credentials")
    return text
