"""What is kept for who asks again, where the settings ask for it, and what is worked once for several."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.client import Client, npy, problem, serving


@pytest.fixture(scope="module")
def keeper(built_repository: Path) -> Iterator[Client]:
    """A service that keeps a megabyte of answers."""
    with serving(built_repository, cache_bytes=1_000_000, fast_for_8_bit=False) as client:
        yield client


def values(client: Client, name: str, label: str = "") -> dict[str, float]:
    """Samples of one metric by one label."""
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    return {s.labels.get(label, ""): s.value for s in families[name].samples if not s.name.endswith("_created")}


def picture(seed: int, side: int = 60) -> bytes:
    return npy(np.random.default_rng(seed).normal(3000, 200, (side, side)).astype(np.uint16))


def test_nothing_is_kept_unless_asked_for(client: Client) -> None:
    for _ in range(2):
        assert "X-Cache" not in client.post("/denoise", picture(0)).headers
    assert client.service.cache is None
    assert values(client, "medrestore_cache_bytes") == {"": 0}


def test_the_same_again_is_answered_from_what_was_kept(keeper: Client) -> None:
    first, again = keeper.post("/denoise", picture(1)), keeper.post("/denoise", picture(1))
    assert (first.headers["X-Cache"], again.headers["X-Cache"]) == ("miss", "hit")
    assert again.content == first.content
    same = set(first.headers) - {"server-timing", "x-cache", "x-request-id"}
    assert {name: again.headers[name] for name in same} == {name: first.headers[name] for name in same}
    assert "restore" not in again.headers["Server-Timing"]
    assert values(keeper, "medrestore_cache_answers", "origin")["hit"] >= 1
    assert values(keeper, "medrestore_cache_bytes")[""] >= len(first.content)


@pytest.mark.parametrize(
    ("url", "accept"),
    [
        ("/denoise?strength=0.5", None),
        ("/denoise?sigma=10", None),
        ("/superresolve?scale=2", None),
        ("/denoise", "image/png"),
    ],
)
def test_other_options_models_and_formats_are_other_answers(keeper: Client, url: str, accept: str | None) -> None:
    keeper.post("/denoise", picture(2))
    assert keeper.post(url, picture(2), accept).headers["X-Cache"] == "miss"
    assert keeper.post(url, picture(2), accept).headers["X-Cache"] == "hit"


def test_equal_requests_at_one_time_are_worked_once(keeper: Client) -> None:
    async def burst() -> list[str]:
        answers = await asyncio.gather(*(keeper.send("POST", "/denoise", content=picture(3, 300)) for _ in range(4)))
        assert len({answer.content for answer in answers}) == 1
        return sorted(answer.headers["X-Cache"] for answer in answers)

    before = values(keeper, "medrestore_restored_pixels", "task")["denoise"]
    assert keeper.runner.run(burst()) == ["joined", "joined", "joined", "miss"]
    assert values(keeper, "medrestore_restored_pixels", "task")["denoise"] - before == 300 * 300


def test_a_failure_is_not_kept(keeper: Client) -> None:
    for _ in range(2):
        assert problem(keeper.post("/denoise", b"no image"))["status"] == 415
    assert not keeper.service.cache._flights  # type: ignore[union-attr]
