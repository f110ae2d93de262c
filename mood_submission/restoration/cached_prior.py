"""The prior, one place at a time: it draws code after code for many grids at once."""

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

# A CUDA graph computes every row that is reserved, so the batch is kept small enough to be full.
GRAPH_ROWS = 1024


class CachedPrior:
    """A prior laid out to compute one place after another, for up to `rows` grids (restorations) at once.

    prior: a PixelSNAIL in eval mode; its weights are copied. height, width: of the grids.
    `reserve(rows)` sets the caches up; then `sample` or `logits`, any number of times. Both raise ValueError for more
    grids than that, or of another size.
    record: makes replays of steps that do the same work each time; by default CUDA graphs on CUDA, else none.
    """

    def __init__(self, prior: PixelSNAIL, height: int, width: int, record: Recorder | None = None):
        first, self.height, self.width, self.rows = prior.first, height, width, 0
        self.half, self.kernel = first.kernel // 2, first.kernel
        self.codebook_size = prior.settings.codebook_size
        self.blocks = [CachedBlock(block, height, width) for block in blocks_of(prior)]
        self.layers = [layer for block in self.blocks for layer in block.layers]
        self.buffers = [buffer for layer in self.layers for buffer in layer.buffers.values()]
        with torch.no_grad():
            # (taps, K + 1, C): code K stands for places outside the grid, and is zeros
            table = F.pad(first.weight.permute(2, 1, 0), (0, 0, 0, 1))
            self.upsample = prior.upsample.weight.detach()[:, :, 0, 0].t().contiguous()
        self.table, self.first_bias = table.flatten(0, 1).contiguous(), first.bias.detach()
        self.offsets = torch.arange(first.taps, device=table.device) * (self.codebook_size + 1)
        self.upsample_bias, self.out_bias = bias_of(prior.upsample), bias_of(prior.out)
        self.out = prior.out.weight.detach().flatten(1)
        self.record = record or (record_graphs if table.is_cuda else None)
        self.replays: list[Callable[[], None]] = []  # of each grid row, for all `rows` at once
        self.samples = 0  # how often `sample` was called since the caches were reserved
        self.uniforms = torch.empty(0)  # (rows, height, width), of the type that they come in

    def rows_for(self, wanted: int) -> int:
        """How many rows to reserve where so many are wanted: those that are reserved already, where that is right."""
        wanted = min(wanted, GRAPH_ROWS) if self.record else wanted
        return wanted if wanted == self.rows else min(wanted, self.affordable_rows())

    def affordable_rows(self) -> int:
        """Rows whose caches fit in the memory that is there."""
        numbers = sum(math.prod(buffer.shape) for buffer in self.buffers)
        numbers += 12 * self.width * len(self.first_bias)  # rows in the making
        return affordable(numbers * self.table.element_size(), self.table.device)

    def reserve(self, rows: int) -> None:
        """Set the caches up for up to `rows` rows, unless they are already."""
        if rows == self.rows:
            return
        self.rows, self.replays, self.samples = 0, [], 0
        for buffer in self.buffers:  # all memory is given back before any is taken
            buffer.release()
        for buffer in self.buffers:
            buffer.reserve(rows, like=self.table)
        codes = torch.zeros(rows, self.height, self.width, dtype=torch.int64, device=self.table.device)
        self.codes = F.pad(codes, (self.half, self.half, self.half, 0), value=self.codebook_size)
        self.cond = self.table.new_zeros(rows, 1, 1)
        self.start = codes[:, 0, 0].clone()
        self.thresholds = torch.zeros(
            rows, dtype=torch.promote_types(self.table.dtype, torch.float32), device=self.table.device
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
        """Restore n <= rows grids, each from its first place to replace on. All tensors have the row as first axis.

        codes, uniforms: (n, h, w). position: (n, 1). thresholds: (n,).
        start: (n,) int64, ascending: places before it stay as they are.
        states, index: state index[i] of each part's `states` is what row i's caches hold when its starting row begins.
        Returns codes (n, h, w).
        """
        self._begin(codes, position)
        self._keep(uniforms, thresholds, start)
        start_rows = (start // self.width).tolist()  # the one wait for the device
        self.samples += 1
        restored = self._sample_rows(start_rows, states, index)
        if self.record and self.samples == 2:  # worth it from the second time on
            restored = restored.clone()
            self._make_replays(self.record)
            self._begin(codes, position)  # recording may change the codes; the caches are loaded anew
            if self.replays and not torch.equal(self._sample_rows(start_rows, states, index), restored):
                self.record, self.replays = None, []
        return restored

    def _sample_rows(self, start_rows: list[int], states: list[State], index: Tensor) -> Tensor:
        n = 0
        for r in range(start_rows[0], self.height):
            before, n = n, bisect_right(start_rows, r)
            if n > before:
                for layer, state in zip(self.layers, states):
                    layer.load(before, n, state, index[before:n])
            check_stopped()
            if self.replays:  # the rows that have not started stay as they are, and are loaded when they do
                self.replays[r]()
            else:
                self._sample_row(n, r)
        return self.codes[: len(start_rows), self.half :, self.half : self.half + self.width]

    def _sample_row(self, n: int, r: int) -> None:
        self._begin_row(n, r)
        for c in range(self.width):
            check_stopped()
            code = self.codes[:n, r + self.half, c + self.half]
            sampled = replace_unlikely(
                self._place(n, r, c), code, self.uniforms[:n, r, c], self.thresholds[:n]
            )
            code.copy_(torch.where(self.start[:n] <= r * self.width + c, sampled, code))
        self._end_row(n, r)

    def _make_replays(self, record: Recorder) -> None:
        try:
            self.replays = record(lambda r: self._sample_row(self.rows, r), self.height)
        except RuntimeError:  # not to be had here: go on without
            self.record = None

    def logits(self, codes: Tensor, position: Tensor) -> Tensor:
        """The prior's logits of given codes (n, h, w), n <= rows, through the caches: (n, K, h, w). For tests."""
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
            raise ValueError(
                f"codes: expected up to {(self.rows, self.height, self.width)}, got {tuple(codes.shape)}"
            )
        n = len(codes)
        self.codes[:n, self.half :, self.half : self.half + self.width] = codes
        self.cond[:n] = F.elu(position.to(self.table.dtype))[:, None]  # (n, 1, 1), as each conv1 sees it

    def _keep(self, uniforms: Tensor, thresholds: Tensor, start: Tensor) -> None:
        """Inputs are copied to where they stay: replays know no other place."""
        n = len(start)
        if not self.uniforms.numel() or self.uniforms.dtype != uniforms.dtype:
            self.uniforms = uniforms.new_zeros(self.rows, self.height, self.width)
            self.replays, self.samples = [], 0
        self.uniforms[:n], self.thresholds[:n], self.start[:n] = uniforms, thresholds, start
        self.start[n:] = self.height * self.width  # rows to spare never start

    def _begin_row(self, n: int, r: int) -> None:
        for block in self.blocks:
            block.begin_row(n, r, self.cond[:n])

    def _place(self, n: int, r: int, c: int) -> Tensor:  # -> logits (n, K)
        window = self.codes[:n, r : r + self.half + 1, c : c + self.kernel].flatten(1)[:, : len(self.offsets)]
        # the masked convolution of one-hot codes, as a sum of rows of its weights
        x = F.embedding_bag(window + self.offsets, self.table, mode="sum") + self.first_bias
        for block in self.blocks:
            x = block.place(n, r, c, x)
        x = F.elu_(F.linear(F.elu_(x), self.upsample, self.upsample_bias))
        return F.linear(x, self.out, self.out_bias)

    def _end_row(self, n: int, r: int) -> None:
        if r + 1 < self.height:  # nothing looks at the vertical stream of the last row
            for block in self.blocks:
                block.end_row(n, r, self.cond[:n])
