"""Non-local sparse attention: every pixel attends to those of similar features (Mei et al., NLSN, 2021).

Pixels are hashed by random rotations, sorted by hash and attend within their chunk of the sorted row
and the two beside it. Unlike the publication: the rotations are drawn once, from a seed, and kept; the
number of buckets is fixed; the last chunk's padding is masked; the first chunk is no neighbour of the
last. Hashing is not continuous: where two buckets tie to rounding, two runtimes may differ,
and all pixels behind that one in the order with it. At 256x256 and 64 channels ONNX and eager differed by
1.4e-3 that way, at every fifth pixel by more than 1e-5; hashing in float64 or on features rounded to a
grid changed nothing, since the features themselves are rounded differently. An order that is found
elsewhere (`PatchHash`) can be given instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -1e4  # finite, so that nothing is undefined; exp(-1e4) is exactly 0


def sort_by_bucket(rotated: Tensor, hashes: int) -> Tensor:
    """rotated (B, L, hashes n) -> positions (B, hashes, L) sorted by bucket, within a bucket as in the image.

    The bucket is the largest of the n numbers and their negatives, the first of them where several are.
    """
    batch, count, _ = rotated.shape
    rotated = rotated.reshape(batch, count, hashes, -1)
    bucket = torch.cat([rotated, -rotated], dim=-1).argmax(dim=-1).transpose(1, 2)
    place = torch.arange(count, device=rotated.device)
    return (bucket * count + place).argsort(dim=-1)  # all different: no tie is left to the sort


class SortedAttention(nn.Module):
    """Mixes x (B, C, H, W), H and W from 1 up, among pixels that an order (B, hashes, H W) puts side by side."""

    def __init__(self, channels: int, chunk: int = 144) -> None:
        super().__init__()
        self.chunk = chunk
        self.match = nn.Conv2d(channels, channels // 4, 3, padding=1)
        self.assemble = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        query = self.match(x).flatten(2).transpose(1, 2)
        return self.attend(query, self.assemble(x), order)

    def neighbours(self, x: Tensor) -> Tensor:
        """Chunks (B, hashes, n, chunk, c) -> each with the one before and after, (B, hashes, n, 3 chunk, c)."""
        padded = F.pad(x, (0, 0, 0, 0, 1, 1))
        return torch.cat([padded[:, :, :-2], x, padded[:, :, 2:]], dim=3)

    def chunks(self, tokens: Tensor, order: Tensor) -> Tensor:
        """tokens (B, L, c), order (B, hashes, L) -> (B, hashes, n, chunk, c), zeros at the end."""
        batch, count, width = tokens.shape
        index = order.reshape(batch, -1, 1).expand(-1, -1, width)
        picked = tokens.gather(1, index).reshape(batch, order.shape[1], count, width)
        padded = F.pad(picked, (0, 0, 0, (self.chunk - count % self.chunk) % self.chunk))
        return padded.reshape(batch, order.shape[1], -1, self.chunk, width)

    def attend(self, query: Tensor, assembled: Tensor, order: Tensor) -> Tensor:
        """query (B, L, c), assembled (B, C, H, W) -> (B, C, H, W)."""
        value = assembled.flatten(2).transpose(1, 2)
        rows = self.chunks(query, order)
        keys = self.neighbours(rows * torch.rsqrt((rows**2).sum(dim=-1, keepdim=True) + 1e-9))
        inside = self.neighbours(self.chunks(torch.ones_like(query[..., :1]), order)).transpose(-2, -1)
        logits = (rows @ keys.transpose(-2, -1)).float() + (1 - inside) * MASKED
        mixed = logits.softmax(dim=-1).to(value.dtype) @ self.neighbours(self.chunks(value, order))
        evidence = torch.logsumexp(logits, dim=-1, keepdim=True)
        return self.merge(mixed, evidence, order).transpose(1, 2).reshape(assembled.shape)

    def merge(self, mixed: Tensor, evidence: Tensor, order: Tensor) -> Tensor:
        """Back to the image's order, and the hashes weighted by how much each has found: (B, L, C)."""
        batch, hashes, count = order.shape
        back = order.argsort(dim=-1)[..., None]
        rows = mixed.reshape(batch, hashes, -1, mixed.shape[-1])[:, :, :count]
        rows = rows.gather(2, back.expand(-1, -1, -1, rows.shape[-1]))
        found = evidence.reshape(batch, hashes, -1, 1)[:, :, :count].gather(2, back)
        return (rows * found.softmax(dim=1).to(rows.dtype)).sum(dim=1)


class NonLocalSparse(SortedAttention):
    """The published block: the order is that of its own features' hashes; 213,312 parameters at 256 channels."""

    rotation: Tensor

    def __init__(self, channels: int, hashes: int = 4, chunk: int = 144, buckets: int = 128, seed: int = 0) -> None:
        super().__init__(channels, chunk)
        self.hashes, self.buckets = hashes, buckets
        generator = torch.Generator(device="cpu").manual_seed(seed)
        rotation = torch.randn(channels // 4, hashes * (buckets // 2), generator=generator, device="cpu")
        self.register_buffer("rotation", rotation.to(self.match.weight.device))

    def order(self, query: Tensor) -> Tensor:
        """query (B, L, c) -> positions (B, hashes, L) sorted by bucket, within a bucket as in the image."""
        return sort_by_bucket(query @ self.rotation, self.hashes)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        query = self.match(x).flatten(2).transpose(1, 2)
        return self.attend(query, self.assemble(x), self.order(query))
