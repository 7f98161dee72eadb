"""Non-local sparse attention: deterministic, masked, exact where it can be checked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.nonlocal_sparse import NonLocalSparse
from models.networks.ssformer import SSFormer


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


def block(**options: int) -> NonLocalSparse:
    torch.manual_seed(0)
    return NonLocalSparse(16, **options).eval()


def test_published_parameters() -> None:
    assert sum(p.numel() for p in NonLocalSparse(256).parameters()) == 213_312


def test_rotations_are_drawn_once_from_their_seed() -> None:
    torch.manual_seed(1)
    first = NonLocalSparse(16)
    torch.manual_seed(2)
    second = NonLocalSparse(16)
    assert torch.equal(first.rotation, second.rotation)
    assert "rotation" in first.state_dict()
    assert "rotation" not in dict(first.named_parameters())
    assert not torch.equal(first.rotation, NonLocalSparse(16, seed=1).rotation)


def test_one_chunk_is_full_attention() -> None:
    """Where a chunk holds all pixels, sorting must not matter and padding must not count."""
    module, x = block(hashes=3, chunk=144), torch.randn(2, 16, 7, 9)
    with torch.no_grad():
        query, value = (f(x).flatten(2).transpose(1, 2) for f in (module.match, module.assemble))
        weights = (query @ F.normalize(query, dim=-1).transpose(1, 2)).softmax(dim=-1)
        expected = (weights @ value).transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=0)


def test_sorted_positions_are_a_permutation_by_bucket_then_place() -> None:
    module, query = block(hashes=2, buckets=8), torch.randn(2, 50, 4)
    order = module.order(query)
    assert order.shape == (2, 2, 50)
    assert torch.equal(order.sort(dim=-1).values, torch.arange(50).expand(2, 2, 50))
    rotated = (query @ module.rotation).reshape(2, 50, 2, 4)
    bucket = torch.cat([rotated, -rotated], dim=-1).argmax(dim=-1).transpose(1, 2)
    key = (bucket * 50 + torch.arange(50)).gather(2, order)
    assert (key.diff(dim=-1) > 0).all()


def test_first_and_last_chunk_are_no_neighbours() -> None:
    """A pixel of the first chunk sees the first two chunks, whatever the third and last hold."""
    module = block(hashes=1, chunk=10)
    x = torch.randn(1, 16, 3, 10)
    with torch.no_grad():
        order = module.order(module.match(x).flatten(2).transpose(1, 2))[0, 0]
    module.order = lambda query: order[None, None]  # type: ignore[method-assign]
    first, last = order[:10], order[20:]
    values = torch.zeros(1, 16, 30)
    values[..., last] = 1
    module.assemble = Apply(lambda x: values.reshape(1, 16, 3, 10))
    with torch.no_grad():
        found = module(x).flatten(2)
    assert not found[..., first].any()
    assert (found[..., order[10:]] > 0).all()


def test_equal_pixels_are_averaged_not_skewed_by_padding() -> None:
    """The published padding repeats the tail; here 37 pixels in chunks of 10 weigh the same."""
    module, x = block(hashes=2, chunk=10), torch.full((1, 16, 1, 37), 0.3)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[..., 2:-2], module.assemble(x)[..., 2:-2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 8)])
def test_tiny_inputs_work(size: tuple[int, int]) -> None:
    with torch.no_grad():
        found = block()(torch.randn(1, 16, *size))
    assert found.shape == (1, 16, *size)
    assert torch.isfinite(found).all()


def test_similar_pixels_find_each_other_far_apart() -> None:
    """Two kinds of pixels, scattered: with a sharp match each is given the mean of its own kind."""
    module = block(hashes=2, chunk=16, buckets=8)
    kind = torch.arange(256) % 7 == 0
    module.match = Apply(lambda x: 30 * x[:, :4])
    module.assemble = Apply(lambda x: x)
    x = torch.zeros(1, 16, 256)
    x[:, 0, kind], x[:, 1, ~kind] = 1.0, 1.0
    with torch.no_grad():
        found = module(x.reshape(1, 16, 16, 16)).flatten(2)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=0)


def test_ssformer_takes_it_in_place_of_the_grid() -> None:
    network = SSFormer(channels=16, groups=1, blocks=4, sparse="hash")
    kinds = [type(each.attention).__name__ for each in network.groups[0].blocks]
    assert kinds == ["Attention", "NonLocalSparse"] * 2
    with pytest.raises(ValueError, match="no attention 'nlsa'; known: window, grid, hash"):
        SSFormer(sparse="nlsa")
