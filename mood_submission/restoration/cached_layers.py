"""The layers of the prior, computed one place at a time. Each layer caches what the next places need."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.layers import GatedResidualUnit, units_of
from ..networks.pixelsnail import ATTENTION_KERNEL, Block, CausalAttention, PointwiseMap, background_of

# What the caches of one layer hold, by their names.
State = dict[str, Tensor]


def _row_of(grid: Tensor, members: Tensor, row: Tensor, left: int = 0, right: int = 0) -> Tensor:
    """Row row[i] of slice members[i] of a grid (B, C, H, W): (N, left + W + right, C). Rows above the grid are zeros."""
    picked = grid[members, :, row.clamp(0, grid.shape[2] - 1)] * (row >= 0)[:, None, None]
    return F.pad(picked.transpose(1, 2), (0, 0, left, right))


# ---- The prior, one place at a time --------------------------------------------------------------------------------
#
# All arrays are channels-last. A cache holds one grid row of a layer's input for each of `rows` restorations, with columns of
# zeros where the convolution pads: (rows, width + padding, C). So the window of places that a convolution sees is one
# contiguous vector. What a convolution sees of the row above is known when a row begins, and is computed then for all places in
# one convolution. What it sees of the present row is one matrix product for each place. Weights are copied into the shapes that
# these two need.


def row_conv(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Unpadded convolution along a grid row: (n, columns, C) with (O, C, 1, k) -> (n, columns - k + 1, O)."""
    return F.conv2d(rows.transpose(1, 2)[:, :, None], weight, bias)[:, :, 0].transpose(1, 2)


def _row_weight(weight: Tensor) -> Tensor:
    """A copy of a weight (O, C, rows, k) in the memory layout that is fast with channels-last data."""
    return weight.detach().clone(memory_format=torch.channels_last)


def _place_weight(weight: Tensor) -> Tensor:
    """A weight (O, C, k) as a matrix (k * C, O) for windows of k places."""
    return weight.detach().permute(2, 1, 0).flatten(0, 1).contiguous()


def _cond_effect(unit: GatedResidualUnit, width: int) -> Tensor:
    """What a conditioning channel of ones adds to conv1, (2, W, C): in the top row, and in all others."""
    # (C, 1, 2, k).
    weight = unit.conv1.weight.detach()[:, unit.conv2.in_channels :]
    ones = weight.new_ones(1, 1, 2, width)
    return F.conv2d(ones, weight, padding=unit.conv1.padding)[0, :, :2, :width].permute(1, 2, 0).contiguous()


class Buffer:
    """A cache: a tensor with an entry for each restoration. It takes memory only between `reserve` and `release`.

    shape: of one restoration's entry.
    data: (rows, *shape). Empty while nothing is reserved.
    """

    def __init__(self, *shape: int):
        self.shape, self.data = shape, torch.empty(0)

    def reserve(self, rows: int, like: Tensor) -> None:
        """Take memory for `rows` restorations, filled with zeros, with the dtype and device of `like`."""
        self.data = like.new_zeros(rows, *self.shape)

    def release(self) -> None:
        """Give the memory back."""
        self.data = torch.empty(0)


class CachedLayer(ABC):
    """A layer of the prior with caches. buffers: the caches by name."""

    buffers: dict[str, Buffer]

    @abstractmethod
    def state(self, seen: dict[nn.Module, Tensor], members: Tensor, row: Tensor) -> State:
        """What the caches hold when a row begins, for N slices of a batch. Caches that are empty then are left out.

        seen: activations of a forward of the whole batch, by network layer.
        members: (N,), the slices' numbers in the batch.
        row: (N,), the row of each slice.
        """

    def load(self, first: int, last: int, state: State, index: Tensor) -> None:
        """Fill the caches of restorations first .. last - 1 with entries `index` of `state`."""
        for name, value in state.items():
            self.buffers[name].data[first:last] = value[index]


def bias_of(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> Tensor:
    """A layer's bias without gradients. Every layer of the prior has one."""
    assert layer.bias is not None
    return layer.bias.detach()


def aux_of(unit: GatedResidualUnit) -> nn.Conv2d:
    """The convolution of a unit's second input. The unit must have one."""
    assert unit.conv1_aux is not None
    return unit.conv1_aux


class VerticalUnit(CachedLayer):
    """A unit of kernel (2, 3), computed row by row. It caches ELU of both convolutions' inputs in the last row."""

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
        """The unit's output in row r, (n, W, C).

        n: how many restorations.
        v, elu_v: the unit's input in row r and its ELU, (n, W, C).
        cond: ELU of the positions, (n, 1, 1).
        """
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
    """A unit of kernel (2, 2) with a second input, computed place by place.

    input, middle: ELU of both convolutions' inputs. Before a row begins they hold the row above. Then they hold the present
        row as far as it is done. At places that are not done yet, `middle` holds what conv1 has summed so far.
    gated: what conv2 has summed so far.
    aux: ELU of the vertical stream in the row above.
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
            # The forward has shifted it down already.
            "aux": _row_of(seen[aux_of(self.unit)], members, row),
        }

    def begin_row(self, n: int, r: int, cond: Tensor) -> None:
        """Sum what the convolutions see of the row above row r. cond: ELU of the positions, (n, 1, 1)."""
        self.gated.data[:n] = row_conv(self.middle.data[:n], self.above2, self.bias2)
        hidden = row_conv(self.input.data[:n], self.above1, self.bias1)
        hidden += row_conv(self.aux.data[:n], self.weight_aux)
        self.middle.data[:n, 1:] = hidden.addcmul_(cond, self.cond_effect[min(r, 1)])

    def place(self, n: int, c: int, h: Tensor) -> Tensor:
        """The unit's output (n, C) at column c of the present row, from its input h (n, C) there."""
        inputs, middle = self.input.data[:n], self.middle.data[:n]
        inputs[:, c + 1] = F.elu(h)
        F.elu_(middle[:, c + 1].addmm_(inputs[:, c : c + 2].flatten(1), self.here1))
        gated = self.gated.data[:n, c].addmm_(middle[:, c : c + 2].flatten(1), self.here2)
        return F.glu(gated, -1).add_(h)


class Pointwise:
    """A unit of kernel 1 at a place: (n, C) -> (n, C).

    aux: what the second input adds to conv1, conv1's bias included; None for a unit without one.
    """

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
    """The attention. It caches keys and values of all positions so far, (rows, positions, ..)."""

    def __init__(self, attention: CausalAttention, positions: int):
        self.attention = attention
        self.query, self.to_key, self.to_value = map(Projection, (attention.query, attention.key, attention.value))
        key_size, channels = len(self.to_key.bias), len(self.to_value.bias)
        self.key, self.value = Buffer(positions, key_size), Buffer(positions, channels)
        self.buffers = {"key": self.key, "value": self.value}
        self.scale = key_size**-0.5

    def state(self, seen: dict[nn.Module, Tensor], members: Tensor, row: Tensor) -> State:
        return {"key": seen[self.attention.key][members], "value": seen[self.attention.value][members]}

    def place(self, n: int, position: int, query: Tensor, key: Tensor) -> Tensor:
        """The attention's output (n, C) at a position of its grid, from its two inputs (n, C) there."""
        self.key.data[:n, position], self.value.data[:n, position] = self.to_key(key), self.to_value(key)
        if position == 0:
            # There is nothing earlier to attend to.
            return torch.zeros_like(query)
        q, keys, values = self.query(query), self.key.data[:n, :position], self.value.data[:n, :position]
        # (n, 1, positions).
        scores = torch.bmm(keys, q[:, :, None] * self.scale)[:, None, :, 0]
        return torch.bmm(scores.softmax(-1), values)[:, 0]


class CachedBlock(CachedLayer):
    """A block: its two streams, the attention on every `step`-th row and column, and the last unit.

    above, here: cat[block input, h] of the last two rows, and of the present row, with two columns of zeros on either side.
    key_query: what the attention's two masked convolutions (key, query) have summed so far in the present row.
    aux: what the attention adds to the last unit's conv1, for `step` rows from the last row with attention on.
    """

    def __init__(self, block: Block, height: int, width: int):
        c, step, half = block.out.conv2.in_channels, block.upsample.stride[0], ATTENTION_KERNEL // 2
        self.block, self.step, self.half, self.channels, self.width = block, step, half, c, width
        # Of the attention's grid.
        self.columns = -(-width // step)
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
        # (C, step * step * C).
        self.upsample = block.upsample.weight.detach().permute(0, 2, 3, 1).flatten(1)
        self.upsample_bias = bias_of(block.upsample).repeat(step * step)
        self.aux_weight = aux_of(block.out).weight.detach().flatten(1)
        self.aux_bias = bias_of(aux_of(block.out)) + bias_of(block.out.conv1)
        self.out = Pointwise(block.out)

    @property
    def layers(self) -> list[CachedLayer]:
        """All layers with caches, this one included.

        The list is made anew each time. A block that held itself would keep its memory until Python collects cycles.
        """
        return [*self.vertical, *self.horizontal, self.attention, self]

    def _lay_out_downsampling(self, height: int) -> None:
        """Join both masked convolutions into one, from cat[x, h, background] to cat[key, query]. Queries do not see x."""
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
        background = F.pad(background_of(height, self.width, like=weight), (self.half, self.half, self.half, 0))
        full = F.pad(weight[:, 2 * c :], (0, (self.half + 1) * k - key.taps)).unflatten(2, (self.half + 1, k))
        bias = torch.cat([key.bias, query.bias]).detach()
        # What does not depend on codes, (2C, rows, columns).
        constant = F.conv2d(background, full, bias, self.step)[0]
        self.kq_constant = constant.permute(1, 2, 0).contiguous()

    def state(self, seen: dict[nn.Module, Tensor], members: Tensor, row: Tensor) -> State:
        inputs, half = seen[self.block.downsample_key][:, : 2 * self.channels], self.half
        above = [_row_of(inputs, members, row - back, half, half) for back in range(half, 0, -1)]
        added, top = seen[aux_of(self.block.out)], row - row % self.step
        right = self.columns * self.step - self.width
        # Rows below the grid are never read.
        aux = [_row_of(added, members, top + i, 0, right) for i in range(self.step)]
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
        """The block's output (n, C) at row r and column c, from its input x (n, C) there."""
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
        """Compute the attention at a position of its grid, and what it adds at the step x step places there."""
        step, first = self.step, column * self.step
        window = self.here.data[:n, first : first + self.half + 1].flatten(1)
        key_query = F.elu_(self.key_query.data[:n, column].addmm_(window, self.kq_here))
        key, query = key_query.chunk(2, dim=1)
        attended = self.attention.place(n, row * self.columns + column, query, key)
        up = F.elu_(torch.addmm(self.upsample_bias, F.elu_(attended), self.upsample)).unflatten(1, (step, step, -1))
        self.aux.data[:n, :, first : first + step] = F.linear(up, self.aux_weight, self.aux_bias)

    def end_row(self, n: int, r: int, cond: Tensor) -> None:
        """Compute the vertical stream of row r, which needs the whole row. Horizontal units see it from the row below."""
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
