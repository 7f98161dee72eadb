"""NoiseMapUNet: the efficient convolutional denoiser (family of FFDNet and DRUNet).

Works on pixel-unshuffled images with noise maps as further inputs (Zhang et al., FFDNet, 2018), in a
small residual U-Net (Zhang et al., DRUNet, 2021) without any bias (Mohan et al., 2020): exactly
homogeneous, and blind to the pedestal of the image (`ZeroSumConv`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.denoiser import CONDITIONS
from models.networks.layers import ZeroSumConv, pad_to_multiple, residual_blocks


class NoiseMapUNet(nn.Module):
    """Predicts the noise in image (B, 1, H, W), given its level and colour, condition (B, 5, H, W).

    `channels` at 1/r, 1/2r and 1/4r of the resolution, `blocks` residual blocks at each level of the
    encoder, the middle and the decoder. Any H and W from 1 up.
    """

    def __init__(
        self,
        channels: tuple[int, int, int] = (64, 64, 80),
        blocks: tuple[int, int, int, int, int] = (2, 2, 2, 2, 2),
        unshuffle: int = 2,
        conditions: int = CONDITIONS,
    ) -> None:
        super().__init__()
        fine, middle, coarse = channels
        phases = unshuffle**2
        self.exact_tiling = True
        self.unshuffle = unshuffle
        self.multiple = 4 * unshuffle
        self.blocks = tuple(blocks)
        self.head = ZeroSumConv(phases, conditions * phases, fine)
        self.encode_fine = residual_blocks(fine, blocks[0])
        self.down_middle = nn.Conv2d(fine, middle, 2, stride=2, bias=False)
        self.encode_middle = residual_blocks(middle, blocks[1])
        self.down_coarse = nn.Conv2d(middle, coarse, 2, stride=2, bias=False)
        self.coarse = residual_blocks(coarse, blocks[2])
        self.up_middle = nn.ConvTranspose2d(coarse, middle, 2, stride=2, bias=False)
        self.decode_middle = residual_blocks(middle, blocks[3])
        self.up_fine = nn.ConvTranspose2d(middle, fine, 2, stride=2, bias=False)
        self.decode_fine = residual_blocks(fine, blocks[4])
        self.tail = nn.Conv2d(fine, phases, 3, padding=1, bias=False)

    @property
    def radius(self) -> int:
        """Pixels to each side that one output pixel can depend on (upper bound).

        Per level: two 3x3 convolutions a block; each change of level rounds to its own grid.
        """
        fine, middle, coarse = self.blocks[0] + self.blocks[4], self.blocks[1] + self.blocks[3], self.blocks[2]
        r = self.unshuffle
        return r * (2 * fine + 2) + 2 * r * (2 * middle) + 4 * r * (2 * coarse) + (r - 1) + r + 2 * r

    def forward(self, image: Tensor, condition: Tensor, pedestal: Tensor | None = None) -> Tensor:
        """`pedestal` (B, 1, 1, 1) is taken off the image, its mean by default; all but rounding is blind to it."""
        rows, columns = image.shape[-2], image.shape[-1]
        pedestal = image.mean(dim=(2, 3), keepdim=True) if pedestal is None else pedestal
        image = pad_to_multiple(image - pedestal, self.multiple)
        phases = [F.pixel_unshuffle(x, self.unshuffle) for x in (image, pad_to_multiple(condition, self.multiple))]
        fine = self.encode_fine(self.head(torch.cat(phases, dim=1)))
        middle = self.encode_middle(self.down_middle(fine))
        coarse = self.coarse(self.down_coarse(middle))
        middle = self.decode_middle(middle + self.up_middle(coarse))
        fine = self.decode_fine(fine + self.up_fine(middle))
        return F.pixel_shuffle(self.tail(fine), self.unshuffle)[..., :rows, :columns]
