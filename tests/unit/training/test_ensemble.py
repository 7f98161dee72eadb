"""The ensemble loss: every term pulls at the generator; VGG-19's features from a file that is named and verified."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import camera
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.superresolution import ResidualUpscaler
from training.duel import gradient_norms
from training.objective import superresolution
from training.superresolution.discriminator import Discriminator, DiscriminatorConfig
from training.superresolution.ensemble import EnsembleConfig, ensemble_terms
from training.superresolution.feature import Vgg19, perceptual_loss, read_features

NAMES = ["l1", "ssim", "gradient", "fourier", "perceptual", "adversarial"]


def clean(side: int = 32, batch: int = 2) -> Tensor:
    plane = torch.from_numpy((camera() / 255).astype(np.float32))
    return torch.stack([plane[100 + 40 * i :, 200:][None, :side, :side] for i in range(batch)])


@pytest.fixture(scope="module")
def vgg() -> Vgg19:
    torch.manual_seed(0)
    network = Vgg19().eval().requires_grad_(False)
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_term_has_a_gradient_on_the_generator(vgg: Vgg19, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    generator, critic = ResidualUpscaler(2, channels=8, blocks=2), Discriminator(DiscriminatorConfig(8, 3))
    high = clean()
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        restored = generator(F.avg_pool2d(high, 2))
        terms = ensemble_terms(restored, high, EnsembleConfig(), vgg, critic(restored))
    assert list(terms) == NAMES
    norms = gradient_norms(terms, generator)
    assert all(norm > 0 and torch.isfinite(norm) for norm in norms.values()), norms
    assert all(term.dtype == torch.float32 for term in terms.values())


def test_terms_are_weighted_and_absent_where_nothing_feeds_them(vgg: Vgg19) -> None:
    high = clean()
    config = EnsembleConfig(l1=2.0, ssim=0.0)
    terms = ensemble_terms(high + 0.1, high, config)
    assert list(terms) == ["l1", "gradient", "fourier"]
    assert float(terms["l1"]) == pytest.approx(0.2, rel=1e-4)
    assert "perceptual" not in ensemble_terms(high, high, EnsembleConfig(perceptual=0.0), vgg)
    assert "adversarial" not in ensemble_terms(high, high, config.without_adversary(), logits=torch.zeros(1))
    assert all(float(term) == pytest.approx(0, abs=1e-6) for term in ensemble_terms(high, high, config).values())


def test_a_super_resolver_can_learn_from_the_ensemble() -> None:
    """`superresolution` with an ensemble: no adversary, another loss, the same scores."""
    torch.manual_seed(0)
    network, high = ResidualUpscaler(2, channels=8, blocks=1), clean()
    batch = {"image": F.avg_pool2d(high, 2), "clean": high}
    plane = high[0, 0].numpy()
    plain, ensemble = superresolution([plane], 2), superresolution([plane], 2, ensemble=EnsembleConfig())
    expected = sum(ensemble_terms(network(batch["image"]), high, EnsembleConfig()).values())
    assert torch.equal(ensemble.loss(network, batch), torch.as_tensor(expected))
    assert not torch.equal(plain.loss(network, batch), ensemble.loss(network, batch))
    assert plain.validate(network) == ensemble.validate(network)
    assert set(plain.validate(network)) == {"psnr", "ssim", "bicubic"}


def test_names_and_size_are_those_of_the_common_file(vgg: Vgg19) -> None:
    state = vgg.state_dict()
    numbers = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    assert list(state) == [f"features.{n}.{kind}" for n in numbers for kind in ("weight", "bias")]
    assert sum(value.numel() for value in state.values()) == 20_024_384
    assert vgg.taps == [2, 7, 16, 25, 34]


def test_features_come_before_the_activation_from_a_normalised_image(vgg: Vgg19) -> None:
    high = clean(16, batch=1)
    found = vgg(high)
    assert [tuple(x.shape[1:]) for x in found] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]
    assert all((x < 0).any() for x in found)  # published: overwritten by their ReLU
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    first = vgg.features[0]((high.repeat(1, 3, 1, 1) - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1))
    torch.testing.assert_close(vgg.features[2](F.relu(first)), found[0])
    assert float(perceptual_loss(vgg, high, high)) == 0


def test_features_are_read_from_the_file_that_was_named(vgg: Vgg19, tmp_path: Path) -> None:
    path = tmp_path / "vgg19.pth"
    torch.save(vgg.state_dict() | {"classifier.0.weight": torch.zeros(1)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    read = EnsembleConfig(features=str(path), features_sha256=digest).read_features()
    assert read is not None
    assert all(torch.equal(read.state_dict()[key], value) for key, value in vgg.state_dict().items())
    assert not any(weight.requires_grad for weight in read.parameters())
    assert EnsembleConfig(perceptual=0.0, features=str(path), features_sha256=digest).read_features() is None
    with pytest.raises(ValueError, match=f"features_sha256.*has {digest}"):
        read_features(str(path), "0" * 64)
    with pytest.raises(ValueError, match="cannot be read"):
        read_features(str(tmp_path / "absent.pth"), digest)


def test_another_network_is_no_feature_network(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError, match=r"other\.pth does not hold VGG-19's"):
        read_features(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    "wrong",
    [{"l1": -1.0}, {"features": "vgg.pth"}, {"l1": 0.0, "ssim": 0.0, "gradient": 0.0, "fourier": 0.0}],
)
def test_contradictions_are_refused(wrong: dict[str, float | str]) -> None:
    with pytest.raises(ValueError, match="ensemble"):
        dataclasses.replace(EnsembleConfig(), **wrong)  # type: ignore[arg-type]
