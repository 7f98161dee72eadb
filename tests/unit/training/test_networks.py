"""The table of sizes: what was published must be what is built."""

from __future__ import annotations

import json

import pytest

from models.networks.registry import NETWORKS
from training.networks import BLOCKS, ENTRIES, NLSA, TEMPERATURE, Entry, main, measure

SAME = [e for e in ENTRIES if e.published_parameters and e.name != "dran"]
MORE = {TEMPERATURE: 6, NLSA: -280}  # than published
OWN = [e for e in ENTRIES if e not in SAME]


def test_every_network_is_listed() -> None:
    assert {entry.name for entry in ENTRIES} == set(NETWORKS) | set(BLOCKS)


@pytest.mark.parametrize("entry", SAME, ids=lambda e: f"{e.name} {e.options}")
def test_parameters_and_work_are_the_published_ones(entry: Entry) -> None:
    size = measure(entry)
    assert size.parameters - MORE.get(entry.note, 0) == entry.published_parameters
    if entry.published_gmacs:
        assert size.gmacs == pytest.approx(entry.published_gmacs, rel=0.015, abs=0.005)


@pytest.mark.parametrize("entry", OWN, ids=lambda e: f"{e.name} {e.options}")
def test_our_own_networks_are_measured(entry: Entry) -> None:
    size = measure(entry)
    assert size.parameters > 10_000
    assert size.gmacs > 0.1


def test_dran_does_the_published_work() -> None:
    """Its parameters differ by what was left out on purpose (see test_dynamic)."""
    entry = next(entry for entry in ENTRIES if entry.name == "dran")
    assert measure(entry).gmacs == pytest.approx(entry.published_gmacs, rel=0.005)


def test_variance_head_is_the_published_one() -> None:
    """1,841 parameters on the 96 features of the full network."""
    head = NETWORKS["dbsn"]().variance_head
    assert sum(p.numel() for p in head.parameters()) == 1_841


def test_table_and_json_agree(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    some = [entry for entry in ENTRIES if entry.name in ("cnn-est", "noise-level", "balanced")]
    monkeypatch.setattr("training.networks.ENTRIES", some)
    assert main(["--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert main([]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(sizes) == len(some)
    for row, size in zip(rows, sizes, strict=True):
        assert row.startswith(f"| {size['name']} |")
        assert f"| {size['parameters']:,} |" in row
