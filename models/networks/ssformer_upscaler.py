"""SSFormerUpscaler: SSFormer's dense and sparse attention, at low resolution, under a super-resolution tail."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.layers import pad_to_multiple
from models.networks.ssformer import SIDE, ChannelNorm, Group
from models.networks.upscaler import CLEARANCE, check_scale, shuffle_tail, upscale

SIZES = {
    "fast": {"channels": 48, "groups": 3, "blocks": 4, "unshuffle": 1},
    "base": {"channels": 96, "groups": 4, "blocks": 6, "unshuffle": 1},
    "quality": {"channels": 144, "groups": 6, "blocks": 6, "unshuffle": 1},
}


class SSFormerUpscaler(nn.Module):
    """Maps image (B, 1, H, W) to (B, 1, sH, sW), H and W from 1 up, aligned by pixel area.

    Works at the image's own resolution; with `unshuffle` 2 at half of it, for a quarter of the work.
    The tile is part of the model: a sparse grid spans it.
    """

    def __init__(
        self,
        scale: int,
        size: str = "",
        channels: int = 48,
        groups: int = 3,
        blocks: int = 4,
        unshuffle: int = 1,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        if size:
            channels, groups, blocks, unshuffle = SIZES[size].values()
        if channels % 16:
            raise ValueError(f"channels {channels} must be a multiple of 16, the width of a head")
        self.scale = check_scale(scale)
        self.unshuffle = unshuffle
        self.multiple = SIDE * unshuffle
        self.exact_tiling = False
        self.radius = CLEARANCE * unshuffle
        self.head = nn.Conv2d(unshuffle**2, channels, 3, padding=1)
        self.groups = nn.Sequential(*(Group(channels, channels // 16, blocks, "grid", balanced) for _ in range(groups)))
        self.norm = ChannelNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.tail = shuffle_tail(channels, scale * unshuffle)

    def detail(self, x: Tensor) -> Tensor:
        """What is added to the interpolation, for an image (B, 1, H, W) of mean 0 and deviation 1."""
        rows, columns = self.scale * x.shape[-2], self.scale * x.shape[-1]
        shallow = self.head(F.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.unshuffle))
        added: Tensor = self.tail(shallow + self.conv(self.norm(self.groups(shallow))))
        return added[..., :rows, :columns]

    def forward(self, image: Tensor) -> Tensor:
        return upscale(image, self.scale, self.detail)
