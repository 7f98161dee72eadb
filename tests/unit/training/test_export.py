"""Export: a trained run becomes a verified bundle that holds no trace of the machine it was made on."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import training.export
from models.bundle import find_bundle, read_bundle, sha256_of
from models.networks.denoiser import CONDITIONS, PARAMETERS, PEDESTAL
from models.networks.registry import build_network
from models.networks.unet import NoiseMapUNet
from training.config import read_config
from training.export import export, fold
from training.reexport import options_of, rebuild, reexport
from training.train import RUN, WEIGHTS, build_graph

DENOISE = """
name = "denoise"
task = "denoise"
summary = "test"
tiles = [64, 128]
restore = { network = "noise-map-unet", options = { channels = [8, 8, 16], blocks = [1, 1, 1, 1, 1] } }
estimate = { network = "noise-level", options = { channels = 8, depth = 2 } }
sources = [{ name = "none", folder = "none" }]
"""
UPSCALE = """
name = "superresolve-x2"
task = "superresolve"
scale = 2
summary = "test"
tiles = [64]
restore = { network = "residual-upscaler", options = { scale = 2, channels = 8, blocks = 1 } }
sources = [{ name = "none", folder = "none" }]
"""


def untrained_run(folder: Path, text: str) -> Path:
    """A run folder as `medrestore train` leaves it, with the weights of step 0."""
    folder.mkdir()
    (folder / "c.toml").write_text(text)
    config = read_config(folder / "c.toml")
    for graph in ("estimate", "restore"):
        fit = getattr(config, graph)
        if fit is not None:
            (folder / graph).mkdir()
            torch.save(build_graph(config, graph, fit).state_dict(), folder / graph / WEIGHTS)
    (folder / RUN).write_text(json.dumps({"config": dataclasses.asdict(config), "seconds": {}}))
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    export(untrained_run(root / "run", DENOISE), root / "bundles", "1", {"table": []})
    export(untrained_run(root / "run2", UPSCALE), root / "bundles", "1", {})
    return root / "bundles"


def test_bundle_is_complete_and_verified(repository: Path) -> None:
    manifest = find_bundle(repository, "denoise").manifest
    assert manifest.parameters == [*PARAMETERS, PEDESTAL]
    graphs = {f"{graph}.{form}" for graph in ("estimate", "restore") for form in ("onnx", "ts", "pt")}
    assert set(manifest.files) == {"golden.npz", *graphs}
    assert max(manifest.parity.values()) <= 1e-4
    assert manifest.halo % manifest.multiple == 0
    assert manifest.provenance["config"]["name"] == "denoise"
    assert find_bundle(repository, "superresolve-x2@1").manifest.scale == 2


def test_manifest_tells_what_was_measured_of_tiles(repository: Path) -> None:
    for name in ("denoise", "superresolve-x2"):
        manifest = find_bundle(repository, name).manifest
        assert (manifest.exact_tiling, manifest.seam) == (True, 0)
        assert set(manifest.bytes_per_pixel) == set(manifest.graphs)
        assert all(size >= 0 for size in manifest.bytes_per_pixel.values())


def test_a_network_that_claims_exact_tiles_and_has_a_seam_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NoiseMapUNet, "radius", 0)  # halo of 8: less than it sees
    with pytest.raises(ValueError, match="off the whole; nothing was written"):
        export(untrained_run(tmp_path / "run", DENOISE), tmp_path / "bundles", "1", {})
    assert not list(tmp_path.rglob("manifest.json"))


def test_where_the_tile_is_part_of_the_model_there_is_one_and_its_seam_is_told(tmp_path: Path) -> None:
    network = '"ssformer", options = { channels = 16, groups = 1, blocks = 2 }'
    text = DENOISE.replace('"noise-map-unet", options = { channels = [8, 8, 16], blocks = [1, 1, 1, 1, 1] }', network)
    run = untrained_run(tmp_path / "run", text.replace("[64, 128]", "[192, 320, 384]"))
    state = torch.load(run / "restore" / WEIGHTS, weights_only=True)
    torch.nn.init.normal_(state["predictor.tail.weight"], std=0.02)  # untrained, it is the identity
    torch.save(state, run / "restore" / WEIGHTS)
    bundle = read_bundle(export(run, tmp_path / "bundles", "1", {}))
    manifest = bundle.manifest
    assert (manifest.exact_tiling, manifest.tiles) == (False, [(320, 320)])
    assert manifest.parameters == PARAMETERS
    assert 0 < manifest.seam < 1
    assert reexport(bundle, tmp_path / "again").manifest.seam == pytest.approx(manifest.seam, rel=0.01)


def test_a_bundle_is_exported_anew_with_the_same_weights(repository: Path, tmp_path: Path) -> None:
    for name in ("denoise", "superresolve-x2"):
        before = find_bundle(repository, name)
        after = reexport(before, tmp_path)
        assert dataclasses.replace(after.manifest, files={}) == dataclasses.replace(before.manifest, files={})
        for graph in before.manifest.graphs:
            assert sha256_of(after.graph(graph, "onnx")) == sha256_of(before.graph(graph, "onnx"))


def test_a_bundle_of_a_superresolvers_run_is_built_again(repository: Path) -> None:
    bundle = find_bundle(repository, "superresolve-x2")
    fit = options_of(bundle, "restore")
    options = {key: value for key, value in fit["options"].items() if key != "scale"}  # as a run has them on record
    stages = {"restore": {"fit": {**fit, "options": options}}, "audit": {}, "degradation": {"scale": 2}}
    manifest = dataclasses.replace(bundle.manifest, provenance={"pipeline": {"config": stages}})
    (graph,) = rebuild(dataclasses.replace(bundle, manifest=manifest))
    golden = np.load(bundle.folder / "golden.npz")
    found = graph.eager({"image": golden["restore.in.image"]})
    np.testing.assert_allclose(found["restored"], golden["restore.out.restored"], atol=1e-5)


def test_golden_output_is_what_the_graph_gives(repository: Path) -> None:
    bundle = find_bundle(repository, "denoise")
    golden = np.load(bundle.folder / "golden.npz")
    session = onnxruntime.InferenceSession(str(bundle.graph("restore", "onnx")), providers=["CPUExecutionProvider"])
    feeds = {name: golden[f"restore.in.{name}"] for name in ("image", "parameters", "strength")}
    for name, found in zip(("restored", "noise"), session.run(["restored", "noise"], feeds), strict=True):
        np.testing.assert_allclose(found, golden[f"restore.out.{name}"], atol=1e-4)


def test_no_file_names_the_machine_it_was_made_on(repository: Path) -> None:
    """No absolute path, in any file or any member of an archive."""
    roots = [str(Path(training.export.__file__).parents[1]), str(Path(torch.__file__).parents[1]), str(Path.home())]
    roots += ["/usr/lib", "/home/", str(repository.parent)]
    for path in (p for p in repository.rglob("*") if p.is_file()):
        contents = {path.name: path.read_bytes()}
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents = {member: archive.read(member) for member in archive.namelist()}
        for member, content in contents.items():
            for root in roots:
                assert root.encode() not in content, (path.name, member, root)


def test_a_version_is_never_overwritten(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="denoise@1 exists already"):
        export(untrained_run(tmp_path / "run", DENOISE), repository, "1", {})


def test_a_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(path: Path, graph: training.export.Graph, arrays: training.export.Arrays) -> training.export.Arrays:
        return {name: value + 2e-4 for name, value in graph.eager(arrays).items()}

    monkeypatch.setitem(training.export.RUNNERS, "onnx", wrong)
    with pytest.raises(ValueError, match="onnx differs from eager"):
        export(untrained_run(tmp_path / "run", DENOISE), tmp_path / "bundles", "1", {})
    assert not list((tmp_path / "bundles").rglob("*.onnx"))


def test_equal_runs_give_equal_bundles(tmp_path: Path) -> None:
    """Two exports of the same weights agree in every ONNX byte."""
    digests = []
    for name in ("a", "b"):
        folder = export(untrained_run(tmp_path / name, DENOISE), tmp_path / f"{name}-bundles", "1", {})
        digests.append({n: e.sha256 for n, e in read_bundle(folder).manifest.files.items() if n.endswith(".onnx")})
    assert digests[0] == digests[1]


def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    network = build_network("noise-map-unet", {"channels": [8, 8, 16]}).eval()
    x, noise = torch.rand(1, 1, 24, 32), torch.full((1, CONDITIONS, 24, 32), 0.1)
    with torch.no_grad():
        torch.testing.assert_close(fold(network)(x, noise), network(x, noise), atol=1e-7, rtol=0)
