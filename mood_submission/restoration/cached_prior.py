"""The prior, one place at a time: of each layer it keeps what the next place needs."""

import math
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.layers import GatedResidualUnit
from ..networks.pixelsnail import (
    ATTENTION_KERNEL,
    Block,
    CausalAttention,
    PixelSNAIL,
    PointwiseMap,
    background_of,
)
from ..runtime.memory import affordable
from ..runtime.stopping import check_stopped
from .graphs import Recorder, record_graphs
from .plain import replace_unlikely

GRAPH_ROWS = (
    1024  # restorations at a time with CUDA graphs, which compute all of them always: few, so as to be full
)
State = dict[str, Tensor]


def _row_of(grid: Tensor, slices: Tensor, row: Tensor, left: int = 0, right: int = 0) -> Tensor:
    """Row row[i] of slice slices[i] of (B, C, H, W), zeros for rows above the grid: (N, left + W + right, C)."""
    picked = grid[slices, :, row.clamp(0, grid.shape[2] - 1)] * (row >= 0)[:, None, None]
    return F.pad(picked.transpose(1, 2), (0, 0, left, right))


# ---- The prior, one place at a time --------------------------------------------------------------------------------
#
# Everything is channels-last. A cache holds one grid row of a layer's input for each of `rows` restorations, with a
# column of zeros where the convolution pads: (rows, width + padding, C), so that the window of neighbouring places
# which a convolution sees is one contiguous vector. What a convolution sees of the row above is known for all places
# when a row begins, and is computed then, in one convolution; what it sees of the present row is one matrix product
# a place. Weights are copied into the shapes that these two need.


def row_conv(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Unpadded convolution along a grid row: (n, columns, C) with (O, C, 1, k) -> (n, columns - k + 1, O)."""
    return F.conv2d(rows.transpose(1, 2)[:, :, None], weight, bias)[:, :, 0].transpose(1, 2)


def _row_weight(weight: Tensor) -> Tensor:
    """(O, C, rows, k), as convolutions over channels-last data like it."""
    return weight.detach().clone(memory_format=torch.channels_last)


def _place_weight(weight: Tensor) -> Tensor:
    """(O, C, k) -> (k * C, O), to be multiplied by a window of k places."""
    return weight.detach().permute(2, 1, 0).flatten(0, 1).contiguous()


def _cond_effect(unit: GatedResidualUnit, width: int) -> Tensor:
    """What a conditioning channel that is 1 everywhere adds to conv1, on the top row and on all others: (2, W, C)."""
    weight = unit.conv1.weight.detach()[:, unit.conv2.in_channels :]  # (C, 1, 2, k)
    ones = weight.new_ones(1, 1, 2, width)
    return F.conv2d(ones, weight, padding=unit.conv1.padding)[0, :, :2, :width].permute(1, 2, 0).contiguous()


class CachePart:
    """A part of the prior with caches: attributes named in `shapes`, whose first axis is the restoration."""

    shapes: dict[str, tuple[int, ...]]

    def reserve(self, rows: int, like: Tensor) -> None:
        for name, shape in self.shapes.items():
            setattr(self, name, like.new_zeros(rows, *shape))

    def release(self) -> None:
        for name in self.shapes:
            setattr(self, name, None)

    def state(self, seen: dict[nn.Module, Tensor], slices: Tensor, row: Tensor) -> State:
        """What the caches hold when `row` (N,) begins, of N slices, from a forward's activations of all slices."""
        raise NotImplementedError

    def load(self, first: int, last: int, state: State, index: Tensor) -> None:
        for name, value in state.items():
            getattr(self, name)[first:last] = value[index]

    def clear(self) -> None:
        for name in self.shapes:
            getattr(self, name).zero_()


class VerticalUnit(CachePart):
    """A unit of kernel (2, 3), a row at a time. Caches ELU of both convolutions' inputs of the last row."""

    def __init__(self, unit: GatedResidualUnit, width: int):
        self.unit, c = unit, unit.conv2.in_channels
        self.shapes = {"input": (width + 2, c), "middle": (width + 2, c)}
        self.above1, self.here1 = (_row_weight(unit.conv1.weight[:, :c, i : i + 1]) for i in range(2))
        self.above2, self.here2 = (_row_weight(unit.conv2.weight[:, :, i : i + 1]) for i in range(2))
        self.bias1, self.bias2 = unit.conv1.bias.detach(), unit.conv2.bias.detach()
        self.cond_effect = _cond_effect(unit, width)

    def state(self, seen: dict[nn.Module, Tensor], slices: Tensor, row: Tensor) -> State:
        before, c = row - 1, self.unit.conv2.in_channels
        return {
            "input": _row_of(seen[self.unit.conv1][:, :c], slices, before, 1, 1),
            "middle": _row_of(seen[self.unit.conv2], slices, before, 1, 1),
        }

    def advance(self, n: int, r: int, v: Tensor, elu_v: Tensor, cond: Tensor) -> Tensor:
        """Take in row r, v and ELU(v) (n, W, C); return the unit's output there. cond: ELU(position) (n, 1, 1)."""
        hidden = row_conv(self.input[:n], self.above1, self.bias1)
        self.input[:n, 1:-1] = elu_v
        hidden += row_conv(self.input[:n], self.here1)
        hidden.addcmul_(cond, self.cond_effect[min(r, 1)])
        gated = row_conv(self.middle[:n], self.above2, self.bias2)
        self.middle[:n, 1:-1] = F.elu_(hidden)
        gated += row_conv(self.middle[:n], self.here2)
        return F.glu(gated, -1).add_(v)


class HorizontalUnit(CachePart):
    """A unit of kernel (2, 2) with aux, a place at a time.

    `input` and `middle` hold ELU of both convolutions' inputs: of the row above until the row begins, then of the
    present row as far as it is done. Right of that, `middle` holds the sums that conv1 has so far; `gated` holds
    conv2's. `aux` is ELU of the vertical stream in the row above.
    """

    def __init__(self, unit: GatedResidualUnit, width: int):
        self.unit, c = unit, unit.conv2.in_channels
        self.shapes = {
            "input": (width + 1, c),
            "middle": (width + 1, c),
            "aux": (width, c),
            "gated": (width, 2 * c),
        }
        self.above1, self.above2 = (_row_weight(conv.weight[:, :c, :1]) for conv in (unit.conv1, unit.conv2))
        self.here1, self.here2 = (_place_weight(conv.weight[:, :c, 1]) for conv in (unit.conv1, unit.conv2))
        self.weight_aux = _row_weight(unit.conv1_aux.weight)
        self.bias1, self.bias2 = (unit.conv1.bias + unit.conv1_aux.bias).detach(), unit.conv2.bias.detach()
        self.cond_effect = _cond_effect(unit, width)

    def state(self, seen: dict[nn.Module, Tensor], slices: Tensor, row: Tensor) -> State:
        before, c = row - 1, self.unit.conv2.in_channels
        return {
            "input": _row_of(seen[self.unit.conv1][:, :c], slices, before, 1),
            "middle": _row_of(seen[self.unit.conv2], slices, before, 1),
            "aux": _row_of(seen[self.unit.conv1_aux], slices, row),
        }  # already shifted down there

    def begin_row(self, n: int, r: int, cond: Tensor) -> None:
        self.gated[:n] = row_conv(self.middle[:n], self.above2, self.bias2)
        hidden = row_conv(self.input[:n], self.above1, self.bias1)
        hidden += row_conv(self.aux[:n], self.weight_aux)
        self.middle[:n, 1:] = hidden.addcmul_(cond, self.cond_effect[min(r, 1)])

    def place(self, n: int, c: int, h: Tensor) -> Tensor:  # (n, C) -> (n, C)
        self.input[:n, c + 1] = F.elu(h)
        F.elu_(self.middle[:n, c + 1].addmm_(self.input[:n, c : c + 2].flatten(1), self.here1))
        gated = self.gated[:n, c].addmm_(self.middle[:n, c : c + 2].flatten(1), self.here2)
        return F.glu(gated, -1).add_(h)


class Pointwise:
    """A unit of kernel 1 at a place: (n, C) -> (n, C), with what aux adds to conv1, conv1's bias included, if any."""

    def __init__(self, unit: GatedResidualUnit):
        self.weight1, self.weight2 = (conv.weight.detach().flatten(1) for conv in (unit.conv1, unit.conv2))
        self.bias1, self.bias2 = unit.conv1.bias.detach(), unit.conv2.bias.detach()

    def __call__(self, x: Tensor, aux: Tensor | None = None) -> Tensor:
        hidden = torch.addmm(self.bias1 if aux is None else aux, F.elu(x), self.weight1.t())
        return F.glu(F.linear(F.elu_(hidden), self.weight2, self.bias2), -1).add_(x)


class Projection:
    """A `PointwiseMap` at a place: (n, C) -> (n, out)."""

    def __init__(self, layer: PointwiseMap):
        self.unit = Pointwise(layer.unit)
        self.weight, self.bias = layer.linear.weight.detach(), layer.linear.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(self.unit(x), self.weight, self.bias)


class CachedAttention(CachePart):
    """Keys and values of all positions so far, (rows, positions, ..)."""

    def __init__(self, attention: CausalAttention, positions: int):
        self.attention = attention
        self.query, self.to_key, self.to_value = map(
            Projection, (attention.query, attention.key, attention.value)
        )
        key_size, channels = len(self.to_key.bias), len(self.to_value.bias)
        self.shapes = {"key": (positions, key_size), "value": (positions, channels)}
        self.scale = key_size**-0.5

    def state(self, seen: dict[nn.Module, Tensor], slices: Tensor, row: Tensor) -> State:
        return {"key": seen[self.attention.key][slices], "value": seen[self.attention.value][slices]}

    def place(self, n: int, position: int, query: Tensor, key: Tensor) -> Tensor:  # (n, C) twice -> (n, C)
        self.key[:n, position], self.value[:n, position] = self.to_key(key), self.to_value(key)
        if position == 0:  # there is nothing earlier to attend to
            return torch.zeros_like(query)
        q, keys, values = self.query(query), self.key[:n, :position], self.value[:n, :position]
        scores = torch.bmm(keys, q[:, :, None] * self.scale)[:, None, :, 0]  # (n, 1, positions)
        return torch.bmm(scores.softmax(-1), values)[:, 0]


class CachedBlock(CachePart):
    """A block: its streams, the attention on every `step`-th row and column, and the last unit.

    `above`, `here`: cat[block input, h] of the last two rows and of the present one, two columns of zeros either side.
    `key_query`: sums that the attention's two masked convolutions have so far, (key, query), in the present row.
    `aux`: what the attention adds to the last unit's conv1, for the `step` rows from the last row with attention on.
    """

    def __init__(self, block: Block, height: int, width: int):
        c, step, half = block.out.conv2.in_channels, block.upsample.stride[0], ATTENTION_KERNEL // 2
        self.block, self.step, self.half, self.channels, self.width = block, step, half, c, width
        self.columns = -(-width // step)  # of the attention's grid
        self.vertical = [VerticalUnit(unit, width) for unit in block.vertical]
        self.horizontal = [HorizontalUnit(unit, width) for unit in block.horizontal]
        self.attention = CachedAttention(block.attention, -(-height // step) * self.columns)
        self.shapes = {
            "above": (half, width + 2 * half, 2 * c),
            "here": (width + 2 * half, 2 * c),
            "key_query": (self.columns, 2 * c),
            "aux": (step, self.columns * step, c),
        }
        self._lay_out_downsampling(height)
        self.upsample = block.upsample.weight.detach().permute(0, 2, 3, 1).flatten(1)  # (C, step * step * C)
        self.upsample_bias = block.upsample.bias.detach().repeat(step * step)
        self.aux_weight = block.out.conv1_aux.weight.detach().flatten(1)
        self.aux_bias = (block.out.conv1_aux.bias + block.out.conv1.bias).detach()
        self.out = Pointwise(block.out)

    @property
    def parts(
        self,
    ) -> list[CachePart]:  # not kept: a block that held itself would hold its caches until Python looks
        return [*self.vertical, *self.horizontal, self.attention, self]

    def _lay_out_downsampling(self, height: int) -> None:
        """Both masked convolutions as one from cat[x, h, background] to cat[key, query]; queries do not see x."""
        key, query, c, k = (
            self.block.downsample_key,
            self.block.downsample_query,
            self.channels,
            ATTENTION_KERNEL,
        )
        weight = key.weight.new_zeros(2 * c, 2 * c + 2, key.taps)
        weight[:c], weight[c:, c:] = key.weight.detach(), query.weight.detach()
        taps_above = self.half * k
        self.kq_above = _row_weight(weight[:, : 2 * c, :taps_above].unflatten(2, (self.half, k)))
        self.kq_here = _place_weight(weight[:, : 2 * c, taps_above:])
        background = F.pad(
            background_of(height, self.width, like=weight), (self.half, self.half, self.half, 0)
        )
        full = F.pad(weight[:, 2 * c :], (0, (self.half + 1) * k - key.taps)).unflatten(2, (self.half + 1, k))
        bias = torch.cat([key.bias, query.bias]).detach()
        constant = F.conv2d(background, full, bias, self.step)[
            0
        ]  # what does not depend on codes: (2C, rows, columns)
        self.kq_constant = constant.permute(1, 2, 0).contiguous()

    def state(self, seen: dict[nn.Module, Tensor], slices: Tensor, row: Tensor) -> State:
        inputs, half = seen[self.block.downsample_key][:, : 2 * self.channels], self.half
        above = [_row_of(inputs, slices, row - back, half, half) for back in range(half, 0, -1)]
        aux, top = seen[self.block.out.conv1_aux], row - row % self.step
        right = self.columns * self.step - self.width
        aux = [
            _row_of(aux, slices, top + i, 0, right) for i in range(self.step)
        ]  # below the grid: never looked at
        return {
            "above": torch.stack(above, 1),
            "aux": torch.stack(aux, 1) + self.block.out.conv1.bias.detach(),
        }

    def begin_row(self, n: int, r: int, cond: Tensor) -> None:
        for unit in self.horizontal:
            unit.begin_row(n, r, cond)
        if r % self.step == 0:
            above = F.conv2d(self.above[:n].permute(0, 3, 1, 2), self.kq_above, stride=(1, self.step))
            torch.add(
                above[:, :, 0].transpose(1, 2), self.kq_constant[r // self.step], out=self.key_query[:n]
            )

    def place(self, n: int, r: int, c: int, x: Tensor) -> Tensor:  # (n, C) -> (n, C)
        h = x
        for unit in self.horizontal:
            h = unit.place(n, c, h)
        self.here[:n, c + self.half, : self.channels] = x
        self.here[:n, c + self.half, self.channels :] = h
        if r % self.step == 0 and c % self.step == 0:
            self._attend(n, r // self.step, c // self.step)
        return self.out(h, self.aux[:n, r % self.step, c])

    def _attend(self, n: int, row: int, column: int) -> None:
        """Attention at a position of its grid, and what it adds at the step x step places there."""
        step, first = self.step, column * self.step
        window = self.here[:n, first : first + self.half + 1].flatten(1)
        key_query = F.elu_(self.key_query[:n, column].addmm_(window, self.kq_here))
        key, query = key_query.chunk(2, dim=1)
        attended = self.attention.place(n, row * self.columns + column, query, key)
        up = F.elu_(torch.addmm(self.upsample_bias, F.elu_(attended), self.upsample)).unflatten(
            1, (step, step, -1)
        )
        self.aux[:n, :, first : first + step] = F.linear(up, self.aux_weight, self.aux_bias)

    def end_row(self, n: int, r: int, cond: Tensor) -> None:
        """The vertical stream needs whole rows; horizontal units see it from the row below."""
        v = self.here[:n, self.half : -self.half, : self.channels]
        elu_v = F.elu(v)
        for vertical, horizontal in zip(self.vertical, self.horizontal):
            v = vertical.advance(n, r, v, elu_v, cond)
            elu_v = F.elu(v)
            horizontal.aux[:n] = elu_v
        for i in range(self.half - 1):
            self.above[:n, i] = self.above[:n, i + 1]
        self.above[:n, -1] = self.here[:n]


class CachedPrior:
    """A prior laid out to compute one place after another, for up to `rows` grids (restorations) at once.

    prior: a PixelSNAIL in eval mode; its weights are copied. height, width: of the grids.
    `reserve(rows)` sets the caches up; then `sample` or `logits`, any number of times. Both raise ValueError for more
    grids than that, or of another size.
    record: makes replays of steps that do the same work each time; by default CUDA graphs on CUDA, else none.
    """

    def __init__(self, prior: PixelSNAIL, height: int, width: int, record: Recorder | None = None):
        first, self.height, self.width, self.rows = prior.first, height, width, 0
        self.half, self.kernel, self.codebook_size = (
            first.kernel // 2,
            first.kernel,
            prior.settings.codebook_size,
        )
        self.blocks = [CachedBlock(block, height, width) for block in prior.blocks]
        self.parts = [part for block in self.blocks for part in block.parts]
        with torch.no_grad():
            table = F.pad(
                first.weight.permute(2, 1, 0), (0, 0, 0, 1)
            )  # (taps, K + 1, C): code K is outside, zeros
            self.upsample = prior.upsample.weight.detach()[:, :, 0, 0].t().contiguous()
        self.table, self.first_bias = table.flatten(0, 1).contiguous(), first.bias.detach()
        self.offsets = torch.arange(first.taps, device=table.device) * (self.codebook_size + 1)
        self.upsample_bias, self.out_bias = prior.upsample.bias.detach(), prior.out.bias.detach()
        self.out = prior.out.weight.detach().flatten(1)
        self.record = record or (record_graphs if table.is_cuda else None)
        self.replays: list[Callable[[], None]] = []  # of each grid row, for all `rows` at once

    def rows_for(self, wanted: int) -> int:
        """How many rows to reserve where so many are wanted: those that are reserved already, where that is right."""
        wanted = min(wanted, GRAPH_ROWS) if self.record else wanted
        return wanted if wanted == self.rows else min(wanted, self.affordable_rows())

    def affordable_rows(self) -> int:
        """Rows whose caches fit in the memory that is there."""
        numbers = sum(math.prod(shape) for part in self.parts for shape in part.shapes.values())
        numbers += 12 * self.width * len(self.first_bias)  # rows in the making
        return affordable(numbers * self.table.element_size(), self.table.device)

    def reserve(self, rows: int) -> None:
        """Set the caches up for up to `rows` rows, unless they are already."""
        if rows == self.rows:
            return
        self.rows, self.replays, self.samples = 0, [], 0
        for part in self.parts:  # first let go of what is there
            part.release()
        for part in self.parts:
            part.reserve(rows, like=self.table)
        codes = torch.zeros(rows, self.height, self.width, dtype=torch.int64, device=self.table.device)
        self.codes = F.pad(codes, (self.half, self.half, self.half, 0), value=self.codebook_size)
        self.cond = self.table.new_zeros(rows, 1, 1)
        self.start = codes[:, 0, 0].clone()
        self.thresholds = torch.zeros(
            rows, dtype=torch.promote_types(self.table.dtype, torch.float32), device=self.table.device
        )
        self.uniforms: Tensor | None = None  # (rows, height, width), of the type that they come in
        self.rows = rows

    def sample(
        self,
        codes: Tensor,
        position: Tensor,
        uniforms: Tensor,
        thresholds: Tensor,
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
            self._make_replays()
            self._begin(codes, position)  # recording may change the codes; the caches are loaded anew
            if self.replays and not torch.equal(self._sample_rows(start_rows, states, index), restored):
                self.record, self.replays = None, []
        return restored

    def _sample_rows(self, start_rows: list[int], states: list[State], index: Tensor) -> Tensor:
        n = 0
        for r in range(start_rows[0], self.height):
            before, n = n, bisect_right(start_rows, r)
            if n > before:
                for part, state in zip(self.parts, states):
                    part.load(before, n, state, index[before:n])
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

    def _make_replays(self) -> None:
        try:
            self.replays = self.record(lambda r: self._sample_row(self.rows, r), self.height)
        except RuntimeError:  # not to be had here: go on without
            self.record = None

    def logits(self, codes: Tensor, position: Tensor) -> Tensor:
        """The prior's logits of given codes (n, h, w), n <= rows, through the caches: (n, K, h, w). For tests."""
        self._begin(codes, position)
        for part in self.parts:
            part.clear()
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
        if self.uniforms is None or self.uniforms.dtype != uniforms.dtype:
            self.uniforms = uniforms.new_zeros(self.rows, self.height, self.width)
            self.replays, self.samples = [], 0
        self.uniforms[:n], self.thresholds[:n], self.start[:n] = uniforms, thresholds, start
        self.start[n:] = self.height * self.width  # rows to spare never start

    def _begin_row(self, n: int, r: int) -> None:
        for block in self.blocks:
            block.begin_row(n, r, self.cond[:n])

    def _place(self, n: int, r: int, c: int) -> Tensor:  # -> logits (n, K)
        window = self.codes[:n, r : r + self.half + 1, c : c + self.kernel].flatten(1)[:, : len(self.offsets)]
        x = (
            F.embedding_bag(window + self.offsets, self.table, mode="sum") + self.first_bias
        )  # one-hot codes' conv
        for block in self.blocks:
            x = block.place(n, r, c, x)
        x = F.elu_(F.linear(F.elu_(x), self.upsample, self.upsample_bias))
        return F.linear(x, self.out, self.out_bias)

    def _end_row(self, n: int, r: int) -> None:
        if r + 1 < self.height:  # nothing looks at the vertical stream of the last row
            for block in self.blocks:
                block.end_row(n, r, self.cond[:n])
