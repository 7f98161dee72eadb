"""SSFormer: retractable attention, dense and sparse in turn, conditioned on the noise level.

Dense blocks attend within 8x8 windows, sparse ones within 8x8 grids whose tokens are spread over the
whole image (Zhang et al., ART, 2023; the grid is fixed as in Tu et al., MaxViT, 2022, so that cost
grows with the area only). "SSFormer" names our own network: its published namesake is another one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.balanced import BalancedAttention
from models.networks.denoiser import CONDITIONS
from models.networks.layers import pad_to_multiple
from models.networks.nonlocal_sparse import NonLocalSparse

SIDE = 8  # of a window and of a grid
TOKENS = SIDE * SIDE
SMALLEST_NOISE = 1e-6  # unit scale: below it the image is not amplified any further
SIZES = {
    "fast": {"channels": 48, "groups": 3, "blocks": 4, "unshuffle": 2},
    "base": {"channels": 96, "groups": 4, "blocks": 6, "unshuffle": 2},
    "quality": {"channels": 96, "groups": 4, "blocks": 6, "unshuffle": 1},
}


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of x (B, C, H, W), in float32; no spatial statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return normalised.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head self-attention among 64 tokens: of a window (dense) or of a spread grid (sparse)."""

    def __init__(self, channels: int, heads: int, sparse: bool) -> None:
        super().__init__()
        self.heads, self.sparse = heads, sparse
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.position = nn.Parameter(torch.zeros(heads, TOKENS, TOKENS))

    def gather(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> tokens (B, h, w, 8, 8, C), h x w windows or grids."""
        batch, channels, rows, columns = x.shape
        if self.sparse:
            x = x.reshape(batch, channels, SIDE, rows // SIDE, SIDE, columns // SIDE)
            return x.permute(0, 3, 5, 2, 4, 1)
        x = x.reshape(batch, channels, rows // SIDE, SIDE, columns // SIDE, SIDE)
        return x.permute(0, 2, 4, 3, 5, 1)

    def scatter(self, tokens: Tensor) -> Tensor:
        """The inverse of `gather`."""
        batch, down, across, _, _, channels = tokens.shape
        order = (0, 5, 3, 1, 4, 2) if self.sparse else (0, 5, 1, 3, 2, 4)
        return tokens.permute(*order).reshape(batch, channels, down * SIDE, across * SIDE)

    def mix(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Tokens as `gather` gives them -> the same shape; bias (h w or 1, heads, 64, 64) is added to the logits."""
        batch, down, across, _, _, channels = tokens.shape
        qkv = self.qkv(tokens).reshape(batch * down * across, TOKENS, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (groups, heads, 64, C / heads)
        logits = (query * (channels // self.heads) ** -0.5) @ key.transpose(-2, -1)
        logits = logits.reshape(batch, down * across, self.heads, TOKENS, TOKENS) + bias
        mixed = logits.float().softmax(dim=-1).to(value.dtype).flatten(0, 1) @ value
        mixed = mixed.transpose(1, 2).reshape(batch, down, across, SIDE, SIDE, channels)
        projected: Tensor = self.project(mixed)
        return projected

    def forward(self, x: Tensor) -> Tensor:
        return self.scatter(self.mix(self.gather(x), self.position))


ATTENTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "window": lambda channels, heads: Attention(channels, heads, sparse=False),
    "grid": lambda channels, heads: Attention(channels, heads, sparse=True),
    "hash": lambda channels, heads: NonLocalSparse(channels),  # the published sparse attention, for comparison
}


class Block(nn.Module):
    """x + attention, then + gated mixing: 1x1, 3x3 depthwise, 1x1."""

    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm_attention = ChannelNorm(channels)
        self.attention = attention
        self.norm_mix = ChannelNorm(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.narrow = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        mixed: Tensor = self.narrow(self.depthwise(F.gelu(self.widen(self.norm_mix(x)))))
        return x + mixed


class Group(nn.Module):
    """Blocks, dense and sparse in turn, a 3x3 convolution, balanced attention if asked for, and the way around."""

    def __init__(self, channels: int, heads: int, blocks: int, sparse: str, balanced: bool) -> None:
        super().__init__()
        kinds = [sparse if i % 2 else "window" for i in range(blocks)]
        self.blocks = nn.Sequential(*(Block(channels, ATTENTIONS[kind](channels, heads)) for kind in kinds))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.balance = BalancedAttention(channels) if balanced else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.balance(self.conv(self.blocks(x)))
        return x + change


class SSFormer(nn.Module):
    """Predicts the noise in image (B, 1, H, W), given its level and colour, condition (B, 5, H, W).

    The image is measured in units of its mean noise level, which makes the network exactly
    homogeneous although its layers are not. Any H and W from 1 up; the tile is part of the model,
    since a sparse grid spans it.
    """

    def __init__(
        self,
        size: str = "",
        channels: int = 48,
        groups: int = 3,
        blocks: int = 4,
        unshuffle: int = 2,
        conditions: int = CONDITIONS,
        sparse: str = "grid",
        balanced: bool = False,
    ) -> None:
        super().__init__()
        if sparse not in ATTENTIONS:
            raise ValueError(f"no attention {sparse!r}; known: {', '.join(ATTENTIONS)}")
        if size:
            channels, groups, blocks, unshuffle = SIZES[size].values()
        if channels % 16:
            raise ValueError(f"channels {channels} must be a multiple of 16, the width of a head")
        phases = unshuffle**2
        self.unshuffle = unshuffle
        self.multiple = SIDE * unshuffle
        self.exact_tiling = False
        self.radius = 4 * SIDE * unshuffle  # what is kept clear of a tile's edge; attention sees all of it
        self.head = nn.Conv2d((1 + conditions) * phases, channels, 3, padding=1)
        self.groups = nn.Sequential(*(Group(channels, channels // 16, blocks, sparse, balanced) for _ in range(groups)))
        self.norm = ChannelNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.tail = nn.Conv2d(channels, phases, 3, padding=1)
        nn.init.zeros_(self.tail.weight)  # starts as the identity
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        rows, columns = image.shape[-2], image.shape[-1]
        level = torch.sqrt((condition[:, :1] ** 2).mean(dim=(1, 2, 3), keepdim=True))
        unit = torch.clamp(level, min=SMALLEST_NOISE)
        centred = (image - image.mean(dim=(2, 3), keepdim=True)) / unit
        planes = [pad_to_multiple(x, self.multiple) for x in (centred, condition / unit)]
        shallow = self.head(torch.cat([F.pixel_unshuffle(x, self.unshuffle) for x in planes], dim=1))
        deep = shallow + self.conv(self.norm(self.groups(shallow)))
        return unit * F.pixel_shuffle(self.tail(deep), self.unshuffle)[..., :rows, :columns]
