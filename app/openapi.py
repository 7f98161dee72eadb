"""The OpenAPI document: `python -m app.openapi > tests/golden/openapi.json` renews the committed one."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI

from app.problem import MEDIA_TYPE


def install(app: FastAPI) -> None:
    """Has `app` describe its errors as the problem documents that they are."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _as_problems(plain())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def document(app: FastAPI) -> str:
    """The document as JSON text, keys sorted, so that equal interfaces give equal bytes."""
    return json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"


def _as_problems(schema: dict[str, Any]) -> dict[str, Any]:
    """Moves the schema of every error to the media type of problems; FastAPI takes all models for JSON."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    response["content"][MEDIA_TYPE] |= response["content"].pop("application/json")
    return schema


if __name__ == "__main__":
    from app.main import create_app
    from app.settings import Settings

    print(document(create_app(Settings())), end="")
