"""Building blocks that the VQ-VAE and the prior share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SameConv2d(nn.Conv2d):
    """Convolution with padding kernel // 2 on each side, whose output is as large as its input.

    Along an axis with an even kernel the output has one row (column) too many. The last one is dropped. So a kernel of 2 sees
    its own place and the one above it (to its left), never the one below (to its right).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int]):
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        super().__init__(in_channels, out_channels, kernel, padding=(kernel[0] // 2, kernel[1] // 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return super().forward(x)[:, :, : x.shape[2], : x.shape[3]]


class GatedResidualUnit(nn.Module):
    """x + GLU(conv2(dropout(ELU(conv1(ELU(cat[x, cond])) + conv1x1(ELU(aux))))))), with optional batch norms.

    channels: width of the input and the output.
    kernel: of both convolutions.
    norm: whether there is batch norm before the first and after the second convolution, as in the VQ-VAE.
    aux_channels: width of a second input that is added after the first convolution. 0 for none.
    cond_channels: width of a conditioning image that is concatenated to the input. 0 for none.
    dropout: probability that a channel is dropped in training.
    """

    def __init__(
        self,
        channels: int,
        kernel: int | tuple[int, int],
        *,
        norm: bool = False,
        aux_channels: int = 0,
        cond_channels: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels + cond_channels) if norm else None
        self.conv1 = SameConv2d(channels + cond_channels, channels, kernel)
        self.conv1_aux = SameConv2d(aux_channels, channels, 1) if aux_channels else None
        self.dropout = nn.Dropout2d(dropout)
        self.conv2 = SameConv2d(channels, 2 * channels, kernel)
        self.norm2 = nn.BatchNorm2d(2 * channels) if norm else None

    def forward(self, x: Tensor, aux: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        h = x if cond is None else torch.cat([x, cond], dim=1)
        h = self.norm1(h) if self.norm1 is not None else h
        h = self.conv1(F.elu(h))
        if self.conv1_aux is not None and aux is not None:
            h = h + self.conv1_aux(F.elu(aux))
        h = self.conv2(self.dropout(F.elu(h)))
        h = self.norm2(h) if self.norm2 is not None else h
        # GLU: the first half of the channels, times the sigmoid of the second half.
        return x + F.glu(h, dim=1)


def units_of(layers: nn.ModuleList) -> list[GatedResidualUnit]:
    """The gated residual units among `layers`, in order."""
    return [layer for layer in layers if isinstance(layer, GatedResidualUnit)]


def broadcast_position(position: Tensor, like: Tensor) -> Tensor:
    """Relative positions (B, 1) as constant images (B, 1, H, W), of the size and dtype of `like` (B, C, H, W)."""
    return position.to(like.dtype)[:, :, None, None].expand(-1, -1, like.shape[2], like.shape[3])


def at_size(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Maps (B, h, w) or (B, C, h, w) at another size, interpolated linearly. The same tensor where it has that size."""
    if maps.shape[-2:] == tuple(size):
        return maps
    channels = maps if maps.dim() == 4 else maps[:, None]
    return F.interpolate(channels, tuple(size), mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)
