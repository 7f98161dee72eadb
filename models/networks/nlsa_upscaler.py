"""NLSAUpscaler: the super-resolver that was published as SSFormer (codehxj/SSFormer, 2023), put right.

EDSR's residual blocks (Lim et al., 2017) with non-local sparse attention (Mei et al., NLSN, 2021) before
the first and after each eighth, balanced attention at the end, a branch of dual attention beside them.
Unlike the code: the dual branch is part of the network and looks at channels (there its weights were
drawn anew in every call, and it took the width for the channels); no sigmoid, which added 1/2 everywhere;
x4 is x4; pixels are hashed by what the image holds around them, with fixed weights (`PatchHash`; there by
features and weights drawn in every call), which is deterministic and exports exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.balanced import BalancedAttention
from models.networks.nonlocal_sparse import SortedAttention
from models.networks.patch_hash import PatchHash
from models.networks.upscaler import CLEARANCE, check_scale, shuffle_tail, upscale

STEP = 0.1  # what is added by residual blocks and attention is scaled down by
NARROWING = 8  # of channels inside the dual attention's channel gate


class NonLocal(nn.Module):
    """x (B, C, H, W) + 0.1 attention among pixels whose surroundings in the image (B, c, H, W) are alike."""

    def __init__(self, channels: int, hashes: int, chunk: int, buckets: int, seed: int) -> None:
        super().__init__()
        self.hash = PatchHash(hashes, buckets, seed)
        self.attention = SortedAttention(channels, chunk)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        change: Tensor = self.attention(x, self.hash(image))
        return x + STEP * change


class ScaledBlock(nn.Module):
    """x + 0.1 conv(relu(conv(x))), 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(torch.relu(self.first(x)))
        return x + STEP * change


class DualBlock(nn.Module):
    """x + two 3x3 convolutions, gated per channel by its mean and per pixel by its largest and mean channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels // NARROWING, 4)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.squeeze = nn.Conv2d(channels, narrow, 1, bias=False)
        self.excite = nn.Conv2d(narrow, channels, 1, bias=False)
        self.place = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(torch.relu(self.first(x)))
        means = change.mean(dim=(2, 3), keepdim=True)
        change = change * torch.sigmoid(self.excite(torch.relu(self.squeeze(means))))
        strongest = torch.cat([change.amax(dim=1, keepdim=True), change.mean(dim=1, keepdim=True)], dim=1)
        return x + change * torch.sigmoid(self.place(strongest))


class Dual(nn.Module):
    """Dual attention blocks in a row, a 3x3 convolution, and the way around."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DualBlock(channels) for _ in range(blocks)))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv(self.blocks(x))
        return x + change


class NLSAUpscaler(nn.Module):
    """Maps image (B, colours, H, W) to (B, colours, sH, sW), H and W from 1 up, aligned by pixel area.

    By default the published size: 256 channels, 32 residual blocks, an attention after each `every` and
    one before them. `dual` blocks of dual attention; with none, the parameters that were published.
    """

    def __init__(
        self,
        scale: int,
        channels: int = 256,
        blocks: int = 32,
        every: int = 8,
        dual: int = 8,
        hashes: int = 4,
        chunk: int = 144,
        buckets: int = 128,
        colours: int = 1,
    ) -> None:
        super().__init__()
        if blocks % every:
            raise ValueError(f"blocks {blocks} must be a multiple of every {every}")
        self.scale = check_scale(scale)
        self.multiple = 1
        self.exact_tiling = False
        self.radius = CLEARANCE
        groups = blocks // every
        self.head = nn.Conv2d(colours, channels, 3, padding=1)
        self.attentions = nn.ModuleList(NonLocal(channels, hashes, chunk, buckets, i) for i in range(groups + 1))
        self.residuals = nn.ModuleList(
            nn.Sequential(*(ScaledBlock(channels) for _ in range(every))) for _ in range(groups)
        )
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.balance = BalancedAttention(channels)
        self.dual = Dual(channels, dual) if dual else None
        self.join = nn.Conv2d(channels, channels, 3, padding=1)
        self.tail = shuffle_tail(channels, scale, colours)

    def detail(self, x: Tensor, image: Tensor) -> Tensor:
        """What is added to the interpolation, for x, the image (B, colours, H, W) at mean 0 and deviation 1.

        The image itself is what is hashed: x is not rounded alike everywhere.
        """
        shallow = self.head(x)
        deep = self.attentions[0](shallow, image)
        for residuals, attention in zip(self.residuals, self.attentions[1:], strict=True):
            deep = attention(residuals(deep), image)
        deep = self.balance(self.conv(deep))
        deep = deep if self.dual is None else deep + self.dual(shallow)
        added: Tensor = self.tail(shallow + self.join(deep))
        return added

    def forward(self, image: Tensor) -> Tensor:
        return upscale(image, self.scale, lambda x: self.detail(x, image))
