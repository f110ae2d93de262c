"""The prior, computed one place at a time: it draws code after code, for many grids at once."""

import math
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..networks.pixelsnail import PixelSNAIL, blocks_of
from ..runtime.memory import affordable
from ..runtime.stopping import check_stopped
from .cached_layers import CachedBlock, State, bias_of
from .graphs import Recorder, record_graphs
from .plain import replace_unlikely

# A CUDA graph computes every row that is reserved. So batches are kept small enough to be full.
GRAPH_ROWS = 1024


class CachedPrior:
    """A prior that computes one place after another, for up to `rows` grids (restorations) at once.

    `reserve(rows)` sets the caches up. Then `sample` or `logits` may be called any number of times. Both raise ValueError for
    more grids than are reserved, and for grids of another size.

    prior: in evaluation mode. Its weights are copied.
    height, width: of the grids.
    record: makes replays of steps that do the same work each time. None for CUDA graphs on CUDA, and no replays elsewhere.
    """

    def __init__(self, prior: PixelSNAIL, height: int, width: int, record: Recorder | None = None):
        first, self.height, self.width, self.rows = prior.first, height, width, 0
        self.half, self.kernel = first.kernel // 2, first.kernel
        self.codebook_size = prior.settings.codebook_size
        self.blocks = [CachedBlock(block, height, width) for block in blocks_of(prior)]
        self.layers = [layer for block in self.blocks for layer in block.layers]
        self.buffers = [buffer for layer in self.layers for buffer in layer.buffers.values()]
        with torch.no_grad():
            # (taps, K + 1, C). Code K stands for places outside the grid, and its entries are zeros.
            table = F.pad(first.weight.permute(2, 1, 0), (0, 0, 0, 1))
            self.upsample = prior.upsample.weight.detach()[:, :, 0, 0].t().contiguous()
        self.table, self.first_bias = table.flatten(0, 1).contiguous(), first.bias.detach()
        self.offsets = torch.arange(first.taps, device=table.device) * (self.codebook_size + 1)
        self.upsample_bias, self.out_bias = bias_of(prior.upsample), bias_of(prior.out)
        self.out = prior.out.weight.detach().flatten(1)
        self.record = record or (record_graphs if table.is_cuda else None)
        # One for each grid row, for all `rows` at once.
        self.replays: list[Callable[[], None]] = []
        # How often `sample` was called since the caches were reserved.
        self.samples = 0
        # (rows, height, width), in the dtype of the last call's.
        self.uniforms = torch.empty(0)

    def rows_for(self, wanted: int) -> int:
        """How many rows to reserve where `wanted` would be best: no more than memory or a graph allows."""
        wanted = min(wanted, GRAPH_ROWS) if self.record else wanted
        return wanted if wanted == self.rows else min(wanted, self.affordable_rows())

    def affordable_rows(self) -> int:
        """How many rows have caches that fit in the free memory."""
        numbers = sum(math.prod(buffer.shape) for buffer in self.buffers)
        # Intermediate results of a row.
        numbers += 12 * self.width * len(self.first_bias)
        return affordable(numbers * self.table.element_size(), self.table.device)

    def reserve(self, rows: int) -> None:
        """Set the caches up for `rows` rows, unless they are already."""
        if rows == self.rows:
            return
        self.rows, self.replays, self.samples = 0, [], 0
        # All memory is given back before any is taken.
        for buffer in self.buffers:
            buffer.release()
        for buffer in self.buffers:
            buffer.reserve(rows, like=self.table)
        codes = torch.zeros(rows, self.height, self.width, dtype=torch.int64, device=self.table.device)
        self.codes = F.pad(codes, (self.half, self.half, self.half, 0), value=self.codebook_size)
        self.cond = self.table.new_zeros(rows, 1, 1)
        self.start = codes[:, 0, 0].clone()
        self.thresholds = torch.zeros(
            codes.shape, dtype=torch.promote_types(self.table.dtype, torch.float32), device=self.table.device
        )
        self.uniforms = torch.empty(0)
        self.rows = rows

    def sample(
        self,
        codes: Tensor,
        position: Tensor,
        uniforms: Tensor,
        thresholds: Tensor,
        *,
        start: Tensor,
        states: list[State],
        index: Tensor,
    ) -> Tensor:
        """Restored codes (n, h, w) of n <= rows grids.

        codes: (n, h, w) int64.
        position: (n, 1).
        uniforms: (n, h, w) in [0, 1).
        thresholds: (n, h, w), in nats. What no code exceeds, infinity, may stand at places that stay as they are.
        start: (n,) int64, ascending: each grid's first place that may be replaced, in raster order.
        states: for each of `layers`, what its caches hold when a grid's starting row begins.
        index: (n,), each grid's entry in `states`.
        """
        self._begin(codes, position)
        self._keep(uniforms, thresholds, start)
        # The only wait for the device.
        *start_rows, end_row = torch.cat([start // self.width, _end_row_of(thresholds)]).tolist()
        self.samples += 1
        restored = self._sample_rows(start_rows, end_row, states, index)
        # Recording pays from the second call on.
        if self.record and self.samples == 2:
            restored = restored.clone()
            self._make_replays(self.record)
            # Recording may change the codes. The caches are loaded anew.
            self._begin(codes, position)
            if self.replays and not torch.equal(self._sample_rows(start_rows, end_row, states, index), restored):
                self.record, self.replays = None, []
        return restored

    def _sample_rows(self, start_rows: list[int], end_row: int, states: list[State], index: Tensor) -> Tensor:
        n = 0
        for r in range(start_rows[0], end_row):
            before, n = n, bisect_right(start_rows, r)
            if n > before:
                for layer, state in zip(self.layers, states):
                    layer.load(before, n, state, index[before:n])
            check_stopped()
            if self.replays:
                # Grids that have not started do not change. Their caches are loaded when they start.
                self.replays[r]()
            else:
                self._sample_row(n, r)
        return self.codes[: len(start_rows), self.half :, self.half : self.half + self.width]

    def _sample_row(self, n: int, r: int) -> None:
        self._begin_row(n, r)
        for c in range(self.width):
            check_stopped()
            code = self.codes[:n, r + self.half, c + self.half]
            sampled = replace_unlikely(self._place(n, r, c), code, self.uniforms[:n, r, c], self.thresholds[:n, r, c])
            code.copy_(torch.where(self.start[:n] <= r * self.width + c, sampled, code))
        self._end_row(n, r)

    def _make_replays(self, record: Recorder) -> None:
        try:
            self.replays = record(lambda r: self._sample_row(self.rows, r), self.height)
        except RuntimeError:
            # Recording is not possible here.
            self.record = None

    def logits(self, codes: Tensor, position: Tensor) -> Tensor:
        """The prior's logits (n, K, h, w) of codes (n, h, w), n <= rows, computed with the caches. For tests."""
        self._begin(codes, position)
        for buffer in self.buffers:
            buffer.data.zero_()
        result = self.table.new_empty(len(codes), self.codebook_size, self.height, self.width)
        for r in range(self.height):
            self._begin_row(len(codes), r)
            for c in range(self.width):
                result[:, :, r, c] = self._place(len(codes), r, c)
            self._end_row(len(codes), r)
        return result

    def _begin(self, codes: Tensor, position: Tensor) -> None:
        if len(codes) > self.rows or codes.shape[1:] != (self.height, self.width):
            raise ValueError(f"codes: expected up to {(self.rows, self.height, self.width)}, got {tuple(codes.shape)}")
        n = len(codes)
        self.codes[:n, self.half :, self.half : self.half + self.width] = codes
        # (n, 1, 1), as each conv1 sees it.
        self.cond[:n] = F.elu(position.to(self.table.dtype))[:, None]

    def _keep(self, uniforms: Tensor, thresholds: Tensor, start: Tensor) -> None:
        """Copy inputs into tensors that stay, since replays read these only."""
        n = len(start)
        if not self.uniforms.numel() or self.uniforms.dtype != uniforms.dtype:
            self.uniforms = uniforms.new_zeros(self.rows, self.height, self.width)
            self.replays, self.samples = [], 0
        self.uniforms[:n], self.thresholds[:n], self.start[:n] = uniforms, thresholds, start
        # Rows beyond the inputs never start.
        self.start[n:] = self.height * self.width

    def _begin_row(self, n: int, r: int) -> None:
        for block in self.blocks:
            block.begin_row(n, r, self.cond[:n])

    def _place(self, n: int, r: int, c: int) -> Tensor:
        """Logits (n, K) at row r and column c."""
        window = self.codes[:n, r : r + self.half + 1, c : c + self.kernel].flatten(1)[:, : len(self.offsets)]
        # The masked convolution of one-hot codes is a sum of rows of its weights.
        x = F.embedding_bag(window + self.offsets, self.table, mode="sum") + self.first_bias
        for block in self.blocks:
            x = block.place(n, r, c, x)
        x = F.elu_(F.linear(F.elu_(x), self.upsample, self.upsample_bias))
        return F.linear(x, self.out, self.out_bias)

    def _end_row(self, n: int, r: int) -> None:
        # Nothing reads the vertical stream of the last row.
        if r + 1 < self.height:
            for block in self.blocks:
                block.end_row(n, r, self.cond[:n])


def _end_row_of(thresholds: Tensor) -> Tensor:
    """The row after the last one in which any code may be replaced, (1,) int64. thresholds: (n, h, w)."""
    replaceable = (thresholds < math.inf).any(2).any(0)
    rows = torch.arange(1, len(replaceable) + 1, device=thresholds.device)
    return torch.where(replaceable, rows, 0).max()[None]
