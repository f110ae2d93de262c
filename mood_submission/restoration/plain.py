"""Restoration in its plainest form. It defines what restoration is, and the fast version is tested against it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..networks.pixelsnail import PixelSNAIL
from ..runtime.precision import exact_float32


def inverse_cdf(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw codes (N,) by inverse CDF: the smallest k with cumsum(softmax(logits))[k] > u, at most K - 1.

    logits: (N, K).
    uniforms: the numbers u, (N,) in [0, 1).
    """
    cdf = logits.softmax(-1).cumsum(-1)
    return (cdf <= uniforms[:, None]).sum(-1).clamp_(max=logits.shape[-1] - 1)


def replace_unlikely(logits: Tensor, codes: Tensor, uniforms: Tensor, thresholds: Tensor) -> Tensor:
    """Codes (N,), with those replaced by draws whose NLL is above the threshold.

    logits: (N, K).
    codes: (N,) int64.
    uniforms: (N,) in [0, 1).
    thresholds: (N,), in nats.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    unlikely = F.cross_entropy(logits, codes, reduction="none") > thresholds
    return torch.where(unlikely, inverse_cdf(logits, uniforms), codes)


@torch.no_grad()
@exact_float32()
def restore_plain(
    prior: PixelSNAIL,
    codes: Tensor,
    position: Tensor,
    uniforms: Tensor,
    threshold: float | Tensor,
    *,
    batch_size: int | None = None,
) -> Tensor:
    """What `restore.restore` computes, with one forward of the prior for each place. For tests.

    Arguments, result and errors are those of `restore`. batch_size: restorations in a forward. None for all.
    """
    check_inputs(prior, codes, position, uniforms, threshold=threshold, batch_size=batch_size)
    batch, restorations, height, width = uniforms.shape
    thresholds = thresholds_of(prior, codes, threshold).repeat_interleave(restorations, dim=0)
    restored = codes.repeat_interleave(restorations, dim=0)
    position, uniforms = position.repeat_interleave(restorations, dim=0), uniforms.flatten(0, 1)
    for rows in torch.arange(len(restored), device=codes.device).split(batch_size or max(1, len(restored))):
        grid = restored[rows]
        for r in range(height):
            for c in range(width):
                logits = prior(grid, position[rows])[:, :, r, c]
                grid[:, r, c] = replace_unlikely(logits, grid[:, r, c], uniforms[rows, r, c], thresholds[rows, r, c])
        restored[rows] = grid
    return torch.unflatten(restored, 0, (batch, restorations))


def check_inputs(
    prior: PixelSNAIL,
    codes: Tensor,
    position: Tensor,
    uniforms: Tensor,
    *,
    threshold: float | Tensor,
    batch_size: int | None,
) -> None:
    """Raises ValueError for arguments that `restore` does not take."""
    if prior.training:
        raise ValueError("the prior is in training mode: call prior.eval() first")
    if codes.ndim != 3 or codes.dtype != torch.int64:
        raise ValueError(f"codes: expected (B, h, w) int64, got {tuple(codes.shape)} {codes.dtype}")
    if position.shape != (len(codes), 1):
        raise ValueError(f"position: expected {(len(codes), 1)}, got {tuple(position.shape)}")
    if uniforms.ndim != 4 or uniforms[:, 0:0].shape != (len(codes), 0, *codes.shape[1:]):
        raise ValueError(f"uniforms: expected (B, S, h, w) for codes {tuple(codes.shape)}, got {tuple(uniforms.shape)}")
    if not uniforms.is_floating_point():
        raise ValueError(f"uniforms: expected floating point, got {uniforms.dtype}")
    threshold = torch.as_tensor(threshold)
    if threshold.shape not in ((), codes.shape[:1], codes.shape):
        shapes = f"{(len(codes),)} or {tuple(codes.shape)}"
        raise ValueError(f"threshold: expected a number, {shapes}, got {tuple(threshold.shape)}")
    if threshold.isnan().any():
        raise ValueError("threshold: expected a number, got NaN")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")


def thresholds_of(prior: PixelSNAIL, codes: Tensor, threshold: float | Tensor) -> Tensor:
    """The threshold of each place, (B, h, w), in the NLL's precision."""
    dtype = torch.promote_types(prior.first.weight.dtype, torch.float32)
    thresholds = torch.as_tensor(threshold, dtype=dtype, device=codes.device)
    return (thresholds[:, None, None] if thresholds.ndim == 1 else thresholds).expand(codes.shape)
