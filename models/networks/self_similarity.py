"""SS-BSN: a blind-spot network whose last blocks also look for similar places in the whole image.

Pixels attend to pixels at distances of multiples of `scale` x step, so nothing reaches offset 0 that
did not before (Han & Yu, SS-BSN, 2023). Where the publication normalises over space, which leaks the
pixel itself, this normalises over channels; and where its logits are almost constant, which makes
attention a mean, the temperature is learnt.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blind_spot import STEPS, BlindSpotNetwork, branch, dilated, pointwise
from models.networks.subsampling import fold, unfold

LARGEST_TEMPERATURE = 100.0
MASKED = -1e4  # finite: a phase of a tiny image may hold nothing but padding; exp(-1e4) is exactly 0


class SelfSimilarity(nn.Module):
    """Cosine attention among the pixels of x (B, C, H, W) that are congruent modulo `stride`.

    One matrix without bias gives queries and keys; values are x itself. Memory of the fused kernel is
    linear in the area, work quadratic: (H W)^2 / stride^2 pairs.
    """

    def __init__(self, channels: int, stride: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels {channels} must be a multiple of heads {heads}")
        self.channels, self.stride, self.heads = channels, stride, heads
        self.weight = nn.Parameter(torch.empty(channels, channels))
        self.temperature = nn.Parameter(torch.full((heads,), math.log(10.0)))  # logarithm of the factor
        nn.init.xavier_uniform_(self.weight)

    def split(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> tokens (B s^2, heads, N, C / heads), one sequence per phase."""
        phases = fold(x, self.stride)
        return phases.reshape(phases.shape[0], self.heads, self.channels // self.heads, -1).transpose(2, 3)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (with the temperature) and keys, (B s^2, heads, N, C / heads); key mask (B s^2, 1, 1, N)."""
        normalised = F.layer_norm(x.permute(0, 2, 3, 1), (self.channels,))  # over channels alone
        token = self.split(F.linear(normalised, self.weight).permute(0, 3, 1, 2))
        key = token * torch.rsqrt((token**2).sum(dim=-1, keepdim=True) + 1e-12)
        factor = torch.exp(self.temperature).clamp(max=LARGEST_TEMPERATURE)[:, None, None]
        inside = fold(torch.ones_like(x[:, :1]), self.stride).flatten(2)
        return key * factor, key, ((1 - inside) * MASKED).unsqueeze(1)

    def attention(self, x: Tensor) -> Tensor:
        """The weights (B s^2, heads, N, N): what `forward` uses without ever holding them."""
        query, key, mask = self.operands(x)
        return (query @ key.transpose(-2, -1) + mask).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[-2], x.shape[-1]
        query, key, mask = self.operands(x)
        mask = mask.expand(-1, -1, query.shape[2], -1)
        mixed = F.scaled_dot_product_attention(query, key, self.split(x), attn_mask=mask, scale=1.0)
        side = (rows + self.stride - 1) // self.stride  # rows of a phase
        phases = mixed.transpose(2, 3).reshape(mixed.shape[0], self.channels, side, -1)
        return unfold(phases, self.stride, rows, columns)


class SelfSimilarBlock(nn.Module):
    """x + FF(x + attention(x)); FF two dilated 3x3 with ReLU and one 1x1."""

    def __init__(self, channels: int, step: int, attention: SelfSimilarity | None) -> None:
        super().__init__()
        self.attention = attention
        self.first = dilated(channels, 3, step)
        self.second = dilated(channels, 3, step)
        self.last = pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        similar = x if self.attention is None else x + self.attention(x)
        change: Tensor = self.last(F.relu(self.second(F.relu(self.first(similar)))))
        return x + change


class SelfSimilarBlindSpot(BlindSpotNetwork):
    """SS-BSN: `modules` blocks per branch, the last `attended` with attention at a stride of `scale` x step.

    As published at 128 x 9, 3 attended, one head: 6,410,561 parameters in the mean path, plus here
    one temperature per attended block and head.
    """

    def __init__(
        self,
        channels: int = 64,
        modules: int = 9,
        attended: int = 3,
        heads: int = 1,
        scale: int = 2,
        colours: int = 1,
        floor: float = 1e-8,
    ) -> None:
        if attended > modules:
            raise ValueError(f"attended {attended} must not exceed modules {modules}")

        def block(step: int, index: int) -> SelfSimilarBlock:
            with_attention = index >= modules - attended
            attention = SelfSimilarity(channels, scale * step, heads) if with_attention else None
            return SelfSimilarBlock(channels, step, attention)

        branches = [branch(channels, 2 * step - 1, [block(step, i) for i in range(modules)]) for step in STEPS]
        radius = None if attended else max(step - 1 + 2 * step * modules for step in STEPS)
        super().__init__(branches, colours=colours, channels=channels, light=True, floor=floor, radius=radius)
