"""The layers of the prior, one place at a time: each keeps in its caches what the next place needs."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.layers import GatedResidualUnit, units_of
from ..networks.pixelsnail import ATTENTION_KERNEL, Block, CausalAttention, PointwiseMap, background_of

State = dict[str, Tensor]  # of one part: what its caches hold, by their names


def _row_of(grid: Tensor, members: Tensor, row: Tensor, left: int = 0, right: int = 0) -> Tensor:
    """Row row[i] of slice members[i] of (B, C, H, W), zeros for rows above the grid: (N, left + W + right, C)."""
    picked = grid[members, :, row.clamp(0, grid.shape[2] - 1)] * (row >= 0)[:, None, None]
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


class Buffer:
    """A cache: one tensor whose first axis is the restoration. It takes memory from `reserve` to `release` only.

    shape: of what is kept for one restoration. data: (rows, *shape), or empty while nothing is reserved.
    """

    def __init__(self, *shape: int):
        self.shape, self.data = shape, torch.empty(0)

    def reserve(self, rows: int, like: Tensor) -> None:
        """Zeros for `rows` restorations, of the type and on the device of `like`."""
        self.data = like.new_zeros(rows, *self.shape)

    def release(self) -> None:
        """Give the memory back."""
        self.data = torch.empty(0)


class CachedLayer(ABC):
    """A part of the prior with caches. buffers: each of them by its name, as `state` calls it."""

    buffers: dict[str, Buffer]

    @abstractmethod
    def state(self, seen: dict[nn.Module, Tensor], members: Tensor, row: Tensor) -> State:
        """What the caches hold when a slice's `row` (N,) begins, of N of the slices in a batch.

        seen: a forward's activations of the whole batch. members: which of its slices, (N,).

        Caches that begin a row empty are left out.
        """

    def load(self, first: int, last: int, state: State, index: Tensor) -> None:
        """Fill the caches of the rows first .. last - 1 with index[i] of `state`."""
        for name, value in state.items():
            self.buffers[name].data[first:last] = value[index]


def bias_of(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> Tensor:
    """A layer's bias, apart from the graph of gradients. Every layer of the prior has one."""
    assert layer.bias is not None
    return layer.bias.detach()


def aux_of(unit: GatedResidualUnit) -> nn.Conv2d:
    """The convolution of a unit's second input, of a unit that has one."""
    assert unit.conv1_aux is not None
    return unit.conv1_aux


class VerticalUnit(CachedLayer):
    """A unit of kernel (2, 3), a row at a time. Caches ELU of both convolutions' inputs of the last row."""

    def __init__(self, unit: GatedResidualUnit, width: int):
        self.unit, c = unit, unit.conv2.in_channels
        self.input, self.middle = Buffer(width + 2, c), Buffer(width + 2, c)
        self.buffers = {"input": self.input, "middle": self.middle}
        self.above1, self.here1 = (_row_weight(unit.conv1.weight[:, :c, i : i + 1]) for i in range(2))
        self.above2, self.here2 = (_row_weight(unit.conv2.weight[:, :, i : i + 1]) for i in range(2))
        self.bias1, self.bias2 = bias_of(unit.conv1), bias_of(unit.conv2)
        self.cond_effect = _cond_effect(unit, width)

    def state(self, seen: dict[nn.Module, Tensor], members: Tensor, row: Tensor) -> State:
        before, c = row - 1, self.unit.conv2.in_channels
        return {
            "input": _row_of(seen[self.unit.conv1][:, :c], members, before, 1, 1),
            "middle": _row_of(seen[self.unit.conv2], members, before, 1, 1),
        }

    def advance(self, n: int, r: int, v: Tensor, elu_v: Tensor, cond: Tensor) -> Tensor:
        """Take in row r, v and ELU(v) (n, W, C); return the unit's output there. cond: ELU(position) (n, 1, 1)."""
        inputs, middle = self.input.data[:n], self.middle.data[:n]
        hidden = row_conv(inputs, self.above1, self.bias1)
        inputs[:, 1:-1] = elu_v
        hidden += row_conv(inputs, self.here1)
        hidden.addcmul_(cond, self.cond_effect[min(r, 1)])
        gated = row_conv(middle, self.above2, self.bias2)
        middle[:, 1:-1] = F.elu_(hidden)
        gated += row_conv(middle, self.here2)
        return F.glu(gated, -1).add_(v)


class HorizontalUnit(CachedLayer):
    """A unit of kernel (2, 2) with aux, a place at a time.

    `input` and `middle` hold ELU of both convolutions' inputs: of the row above until the row begins, then of the
    present row as far as it is done. Right of that, `middle` holds the sums that conv1 has so far; `gated` holds
    conv2's. `aux` is ELU of the vertical stream in the row above.
    """

    def __init__(self, unit: GatedResidualUnit, width: int):
        self.unit, c = unit, unit.conv2.in_channels
        self.input, self.middle = Buffer(width + 1, c), Buffer(width + 1, c)
        self.aux, self.gated = Buffer(width, c), Buffer(width, 2 * c)
        self.buffers = {"input": self.input, "middle": self.middle, "aux": self.aux, "gated": self.gated}
        self.above1, self.above2 = (_row_weight(conv.weight[:, :c, :1]) for conv in (unit.conv1, unit.conv2))
        self.here1, self.here2 = (_place_weight(conv.weight[:, :c, 1]) for conv in (unit.conv1, unit.conv2))
        self.weight_aux = _row_weight(aux_of(unit).weight)
        self.bias1, self.bias2 = bias_of(unit.conv1) + bias_of(aux_of(unit)), bias_of(unit.conv2)
        self.cond_effect = _cond_effect(unit, width)

    def state(self, seen: dict[nn.Module, Tensor], members: Tensor, row: Tensor) -> State:
        before, c = row - 1, self.unit.conv2.in_channels
        return {
            "input": _row_of(seen[self.unit.conv1][:, :c], members, before, 1),
            "middle": _row_of(seen[self.unit.conv2], members, before, 1),
            "aux": _row_of(seen[aux_of(self.unit)], members, row),  # already shifted down there
        }

    def begin_row(self, n: int, r: int, cond: Tensor) -> None:
        """Set up the sums of row r, of which nothing is done yet. cond: ELU(position) (n, 1, 1)."""
        self.gated.data[:n] = row_conv(self.middle.data[:n], self.above2, self.bias2)
        hidden = row_conv(self.input.data[:n], self.above1, self.bias1)
        hidden += row_conv(self.aux.data[:n], self.weight_aux)
        self.middle.data[:n, 1:] = hidden.addcmul_(cond, self.cond_effect[min(r, 1)])

    def place(self, n: int, c: int, h: Tensor) -> Tensor:
        """The unit's output at column c of the present row, from its input h there: (n, C) -> (n, C)."""
        inputs, middle = self.input.data[:n], self.middle.data[:n]
        inputs[:, c + 1] = F.elu(h)
        F.elu_(middle[:, c + 1].addmm_(inputs[:, c : c + 2].flatten(1), self.here1))
        gated = self.gated.data[:n, c].addmm_(middle[:, c : c + 2].flatten(1), self.here2)
        return F.glu(gated, -1).add_(h)


class Pointwise:
    """A unit of kernel 1 at a place: (n, C) -> (n, C), with what aux adds to conv1, conv1's bias included, if any."""

    def __init__(self, unit: GatedResidualUnit):
        self.weight1, self.weight2 = (conv.weight.detach().flatten(1) for conv in (unit.conv1, unit.conv2))
        self.bias1, self.bias2 = bias_of(unit.conv1), bias_of(unit.conv2)

    def __call__(self, x: Tensor, aux: Tensor | None = None) -> Tensor:
        hidden = torch.addmm(self.bias1 if aux is None else aux, F.elu(x), self.weight1.t())
        return F.glu(F.linear(F.elu_(hidden), self.weight2, self.bias2), -1).add_(x)


class Projection:
    """A `PointwiseMap` at a place: (n, C) -> (n, out)."""

    def __init__(self, layer: PointwiseMap):
        self.unit = Pointwise(layer.unit)
        self.weight, self.bias = layer.linear.weight.detach(), bias_of(layer.linear)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(self.unit(x), self.weight, self.bias)


class CachedAttention(CachedLayer):
    """Keys and values of all positions so far, (rows, positions, ..)."""

    def __init__(self, attention: CausalAttention, positions: int):
        self.attention = attention
        self.query, self.to_key, self.to_value = map(
            Projection, (attention.query, attention.key, attention.value)
        )
        key_size, channels = len(self.to_key.bias), len(self.to_value.bias)
        self.key, self.value = Buffer(positions, key_size), Buffer(positions, channels)
        self.buffers = {"key": self.key, "value": self.value}
        self.scale = key_size**-0.5

    def state(self, seen: dict[nn.Module, Tensor], members: Tensor, row: Tensor) -> State:
        return {"key": seen[self.attention.key][members], "value": seen[self.attention.value][members]}

    def place(self, n: int, position: int, query: Tensor, key: Tensor) -> Tensor:
        """What the attention gives at a position of its grid: (n, C) twice -> (n, C)."""
        self.key.data[:n, position], self.value.data[:n, position] = self.to_key(key), self.to_value(key)
        if position == 0:  # there is nothing earlier to attend to
            return torch.zeros_like(query)
        q, keys, values = self.query(query), self.key.data[:n, :position], self.value.data[:n, :position]
        scores = torch.bmm(keys, q[:, :, None] * self.scale)[:, None, :, 0]  # (n, 1, positions)
        return torch.bmm(scores.softmax(-1), values)[:, 0]


class CachedBlock(CachedLayer):
    """A block: its streams, the attention on every `step`-th row and column, and the last unit.

    `above`, `here`: cat[block input, h] of the last two rows and of the present one, two columns of zeros either side.
    `key_query`: sums that the attention's two masked convolutions have so far, (key, query), in the present row.
    `aux`: what the attention adds to the last unit's conv1, for the `step` rows from the last row with attention on.
    """

    def __init__(self, block: Block, height: int, width: int):
        c, step, half = block.out.conv2.in_channels, block.upsample.stride[0], ATTENTION_KERNEL // 2
        self.block, self.step, self.half, self.channels, self.width = block, step, half, c, width
        self.columns = -(-width // step)  # of the attention's grid
        self.vertical = [VerticalUnit(unit, width) for unit in units_of(block.vertical)]
        self.horizontal = [HorizontalUnit(unit, width) for unit in units_of(block.horizontal)]
        self.attention = CachedAttention(block.attention, -(-height // step) * self.columns)
        self.above = Buffer(half, width + 2 * half, 2 * c)
        self.here = Buffer(width + 2 * half, 2 * c)
        self.key_query = Buffer(self.columns, 2 * c)
        self.aux = Buffer(step, self.columns * step, c)
        self.buffers = {
            "above": self.above,
            "here": self.here,
            "key_query": self.key_query,
            "aux": self.aux,
        }
        self._lay_out_downsampling(height)
        self.upsample = block.upsample.weight.detach().permute(0, 2, 3, 1).flatten(1)  # (C, step * step * C)
        self.upsample_bias = bias_of(block.upsample).repeat(step * step)
        self.aux_weight = aux_of(block.out).weight.detach().flatten(1)
        self.aux_bias = bias_of(aux_of(block.out)) + bias_of(block.out.conv1)
        self.out = Pointwise(block.out)

    @property
    def layers(self) -> list[CachedLayer]:
        """All parts with caches. Not kept: a block that held itself would hold its caches until Python looks."""
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
        # what does not depend on codes: (2C, rows, columns)
        constant = F.conv2d(background, full, bias, self.step)[0]
        self.kq_constant = constant.permute(1, 2, 0).contiguous()

    def state(self, seen: dict[nn.Module, Tensor], members: Tensor, row: Tensor) -> State:
        inputs, half = seen[self.block.downsample_key][:, : 2 * self.channels], self.half
        above = [_row_of(inputs, members, row - back, half, half) for back in range(half, 0, -1)]
        added, top = seen[aux_of(self.block.out)], row - row % self.step
        right = self.columns * self.step - self.width
        aux = [
            _row_of(added, members, top + i, 0, right) for i in range(self.step)
        ]  # never looked at below the grid
        return {
            "above": torch.stack(above, 1),
            "aux": torch.stack(aux, 1) + bias_of(self.block.out.conv1),
        }

    def begin_row(self, n: int, r: int, cond: Tensor) -> None:
        for unit in self.horizontal:
            unit.begin_row(n, r, cond)
        if r % self.step == 0:
            above = F.conv2d(self.above.data[:n].permute(0, 3, 1, 2), self.kq_above, stride=(1, self.step))
            sums = self.key_query.data[:n]
            torch.add(above[:, :, 0].transpose(1, 2), self.kq_constant[r // self.step], out=sums)

    def place(self, n: int, r: int, c: int, x: Tensor) -> Tensor:
        """The block's output at a place, from its input there: (n, C) -> (n, C)."""
        h = x
        for unit in self.horizontal:
            h = unit.place(n, c, h)
        here = self.here.data[:n, c + self.half]
        here[:, : self.channels] = x
        here[:, self.channels :] = h
        if r % self.step == 0 and c % self.step == 0:
            self._attend(n, r // self.step, c // self.step)
        return self.out(h, self.aux.data[:n, r % self.step, c])

    def _attend(self, n: int, row: int, column: int) -> None:
        """Attention at a position of its grid, and what it adds at the step x step places there."""
        step, first = self.step, column * self.step
        window = self.here.data[:n, first : first + self.half + 1].flatten(1)
        key_query = F.elu_(self.key_query.data[:n, column].addmm_(window, self.kq_here))
        key, query = key_query.chunk(2, dim=1)
        attended = self.attention.place(n, row * self.columns + column, query, key)
        up = F.elu_(torch.addmm(self.upsample_bias, F.elu_(attended), self.upsample)).unflatten(
            1, (step, step, -1)
        )
        self.aux.data[:n, :, first : first + step] = F.linear(up, self.aux_weight, self.aux_bias)

    def end_row(self, n: int, r: int, cond: Tensor) -> None:
        """The vertical stream needs whole rows; horizontal units see it from the row below."""
        here, above = self.here.data[:n], self.above.data[:n]
        v = here[:, self.half : -self.half, : self.channels]
        elu_v = F.elu(v)
        for vertical, horizontal in zip(self.vertical, self.horizontal):
            v = vertical.advance(n, r, v, elu_v, cond)
            elu_v = F.elu(v)
            horizontal.aux.data[:n] = elu_v
        for i in range(self.half - 1):
            above[:, i] = above[:, i + 1]
        above[:, -1] = here
