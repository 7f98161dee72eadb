"""Muon: orthogonal steps for hidden matrices, Adam's for the rest, exact state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training.optimizer import Muon, build_optimizer, is_hidden, orthogonalise


@pytest.mark.parametrize("shape", [(16, 16), (8, 72), (72, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 16, 3)
        self.body = nn.Conv2d(16, 16, 3)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.tail = nn.Conv2d(16, 1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.depthwise(torch.relu(self.body(torch.relu(self.head(x))))))


def test_only_hidden_matrices_are_orthogonalised() -> None:
    hidden = [name for name, weight in Small().named_parameters() if is_hidden(name, weight)]
    assert hidden == ["body.weight"]


def steps(network: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(2, 1, 16, 16, generator=generator)
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


def test_other_weights_move_as_under_adam() -> None:
    torch.manual_seed(0)
    ours = Small()
    for weight in ours.body.parameters():
        weight.requires_grad_(False)
    theirs = copy.deepcopy(ours)
    steps(ours, build_optimizer(ours, "muon", 2e-3, 0.01), 5)
    steps(theirs, torch.optim.AdamW([w for w in theirs.parameters() if w.requires_grad], 1e-3, weight_decay=0.01), 5)
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference)


def test_a_saved_optimizer_goes_on_to_the_bit() -> None:
    torch.manual_seed(0)
    network = Small()
    unbroken = copy.deepcopy(network)
    steps(unbroken, build_optimizer(unbroken, "muon", 2e-3, 0.0), 6)
    first = build_optimizer(network, "muon", 2e-3, 0.0)
    assert isinstance(first, Muon)
    steps(network, first, 3)
    second = build_optimizer(network, "muon", 2e-3, 0.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for i in range(3, 6):
        generator = torch.Generator().manual_seed(i)
        second.zero_grad()
        network(torch.randn(2, 1, 16, 16, generator=generator)).square().mean().backward()
        second.step()
    for kept, expected in zip(network.parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(kept, expected)
