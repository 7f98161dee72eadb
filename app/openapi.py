"""The OpenAPI document: `python -m app.openapi > tests/golden/openapi.json` renews the committed one."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI

from app.access import API_KEY, TABLE, Rule, row_of, scope_of
from app.problem import MEDIA_TYPE

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key (RFC 6750)"},
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": API_KEY,
        "description": "the same, where a proxy needs the other",
    },
}


def install(app: FastAPI) -> None:
    """Has `app` describe its errors as the problem documents that they are."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_security(_as_problems(plain()))
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


def _with_security(schema: dict[str, Any]) -> dict[str, Any]:
    """Says of every operation which scope it needs, by the table of `app.access`."""
    schema["components"]["securitySchemes"] = SCHEMES
    for path, operations in schema["paths"].items():
        need = TABLE[row_of(path) or ""]
        for operation in operations.values():
            roles = [scope] if (scope := scope_of(need)) else []
            operation["security"] = [] if need == Rule.OPEN else [{name: roles} for name in SCHEMES]
            if need != Rule.OPEN:
                operation["responses"] |= {
                    "401": _refusal("No valid API key"),
                    "403": _refusal(f"The API key lacks what this needs: {need}"),
                }
    return schema


def _refusal(description: str) -> dict[str, Any]:
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {"description": description, "content": {MEDIA_TYPE: problem}}


if __name__ == "__main__":
    from app.main import create_app
    from app.settings import Settings

    print(document(create_app(Settings())), end="")
