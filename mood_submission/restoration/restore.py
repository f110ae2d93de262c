"""Restoration at about the cost of one forward of the prior. The result is that of `plain.restore_plain`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.layers import units_of
from ..networks.pixelsnail import PixelSNAIL, blocks_of
from ..runtime.memory import in_batches
from ..runtime.precision import float32_as
from .cached_layers import State, aux_of
from .cached_prior import CachedPrior
from .plain import check_inputs, thresholds_of


@torch.no_grad()
def restore(
    prior: PixelSNAIL,
    codes: Tensor,
    position: Tensor,
    uniforms: Tensor,
    threshold: float | Tensor,
    *,
    batch_size: int | None = None,
    cached: CachedPrior | None = None,
    tf32: bool = False,
) -> Tensor:
    """Restorations of code grids, (B, S, h, w) int64. In raster order, unlikely codes are replaced by draws from the prior.

    A code is unlikely where its NLL is above the threshold. The NLL is that given the codes before it, as they are by then.
    All tensors are on the prior's device.

    prior: in evaluation mode, in float32, float64 or bfloat16. Its hooks are set, so no other thread may use it meanwhile.
    codes: (B, h, w) int64, 0 .. K-1.
    position: (B, 1), -0.5 .. 0.5.
    uniforms: (B, S, h, w) floating point in [0, 1), for S restorations of each grid.
    threshold: in nats. One number, one for each grid, (B,), or one for each place, (B, h, w). A code at a threshold below 0 is
        always drawn anew; at infinity it stays as it is.
    batch_size: restorations at a time. None for what memory allows. It is halved when memory runs out. It changes the result
        by the rounding of sums only.
    cached: the caches of an earlier call with the same prior and grid size. None for new ones. On CUDA, their second use
        records their work as graphs.
    tf32: let CUDA multiply float32 in TF32. As with a bfloat16 prior, some draws are then others, of the same distribution up
        to rounding.

    Raises ValueError for shapes or dtypes that do not fit and for a prior in training mode, and out-of-memory errors only where
    a single restoration does not fit.
    """
    check_inputs(prior, codes, position, uniforms, threshold=threshold, batch_size=batch_size)
    batch, restorations, height, width = uniforms.shape
    result = codes[:, None].repeat(1, restorations, 1, 1)
    if result.numel():
        with float32_as("tf32" if tf32 else "ieee"):
            grids = _Grids(codes, position, thresholds_of(prior, codes, threshold))
            cached = cached or CachedPrior(prior, height, width)
            _fill(result, prior, cached, grids, uniforms=uniforms, batch_size=batch_size)
    return result


@dataclass(frozen=True, eq=False)
class _Grids:
    """Grids to restore.

    codes: (B, h, w) int64.
    position: (B, 1).
    thresholds: (B, h, w), in nats.
    """

    codes: Tensor
    position: Tensor
    thresholds: Tensor


def _fill(
    result: Tensor,
    prior: PixelSNAIL,
    cached: CachedPrior,
    grids: _Grids,
    *,
    uniforms: Tensor,
    batch_size: int | None,
) -> None:
    """Fill `result` (B, S, h, w), which holds the codes at first."""
    codes = grids.codes
    batch, restorations = uniforms.shape[:2]
    rows = batch * restorations
    batch_size = min(batch_size, rows) if batch_size else cached.rows_for(rows)
    start, members, states = _first_forward(prior, cached, grids, batch_size)
    row_state = torch.arange(len(members), device=codes.device).repeat_interleave(restorations)
    row_slice, row_copy = (
        members[row_state],
        torch.arange(restorations, device=codes.device).repeat(len(members)),
    )

    def run(first: int, last: int, size: int) -> None:
        cached.reserve(size)
        of, copy = row_slice[first:last], row_copy[first:last]
        result[of, copy] = cached.sample(
            codes[of],
            grids.position[of],
            uniforms[of, copy],
            grids.thresholds[of],
            start=start[of],
            states=states,
            index=row_state[first:last],
        )

    in_batches(run, len(row_slice), batch_size)


# ---- The one forward that all restorations of a slice share --------------------------------------------------------


def _first_forward(
    prior: PixelSNAIL, cached: CachedPrior, grids: _Grids, batch_size: int
) -> tuple[Tensor, Tensor, list[State]]:
    """Each slice's first place to replace, and the activations that sampling starts with there.

    Returns three things: the first places (B,), h * w where nothing is to be replaced; the N slices that have one, earliest
    first, (N,); and the state of each of `cached.layers` for these N slices.
    """
    codes, position, thresholds = grids.codes, grids.position, grids.thresholds
    places = codes[0].numel()
    start = codes.new_full((len(codes),), places)
    members: list[Tensor] = []
    states: list[list[State]] = []

    def run(first: int, last: int, _: int) -> None:
        with _captured(prior) as seen:
            logits = prior(codes[first:last], position[first:last])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(logits, codes[first:last], reduction="none").flatten(1)
        unlikely = nll > thresholds[first:last].flatten(1)
        found = unlikely.any(1).nonzero()[:, 0]
        # `argmax` gives the first of the largest.
        at = unlikely[found].int().argmax(1)
        state = [layer.state(seen, found, at // cached.width) for layer in cached.layers] if len(found) else None
        # Nothing from here on can run out of memory.
        if state is not None:
            start[first + found] = at
            members.append(first + found)
            states.append(state)

    # A slice keeps `height` rows of each layer.
    in_batches(run, len(codes), max(1, batch_size // cached.height))
    if not members:
        return start, start.new_empty(0), []
    order = torch.argsort(start[torch.cat(members)], stable=True)
    joined = [
        {name: torch.cat([chunk[i][name] for chunk in states])[order] for name in states[0][i]}
        for i in range(len(cached.layers))
    ]
    return start, torch.cat(members)[order], joined


@contextmanager
def _captured(prior: PixelSNAIL) -> Iterator[dict[nn.Module, Tensor]]:
    """Activations of the prior's next forward, as `CachedLayer.state` reads them: some layers' inputs, others' outputs."""
    seen: dict[nn.Module, Tensor] = {}

    def note_input(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[layer] = args[0]

    def note_output(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[layer] = output

    hooks = []
    for block in blocks_of(prior):
        for unit in units_of(block.vertical) + units_of(block.horizontal):
            layers = [layer for layer in (unit.conv1, unit.conv1_aux, unit.conv2) if layer is not None]
            hooks += [layer.register_forward_pre_hook(note_input) for layer in layers]
        hooks.append(block.downsample_key.register_forward_pre_hook(note_input))
        outputs = (block.attention.key, block.attention.value, aux_of(block.out))
        hooks += [layer.register_forward_hook(note_output) for layer in outputs]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
