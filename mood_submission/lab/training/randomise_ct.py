"""What hospitals differ in, drawn at random for CTs in Hounsfield units, before the window is applied.

Works on stacks of slices in Hounsfield units, each slice with changes of its own or all alike, as one volume (`RandomNumbers`). What a
scanner and a protocol change is here: contrast medium, dose, kernel, streaks, metal, a field of view that cuts the sides, what
bowel and stomach hold, a fatty liver. What people differ in, size and pose, is `randomise.deform`'s.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .randomise import RandomNumbers
from .resample import blur

GAS = -300.0  # HU: darker inside the body is gas or lung
FAT = (-150.0, -40.0)  # HU
BONE = 180.0  # HU: brighter and coherent is bone, or dense contrast
LUNG_SHARE = 0.12  # of the body: more gas than that in a slice is lung


@dataclass(frozen=True)
class CtRandomisation:
    """Ranges of the random changes; Hounsfield units, and shares of the slice's side for lengths.

    share: of slices, or volumes, that get each of the changes that have no probability of their own.
    phase: the factor by which what lies above soft tissue (`PLAIN` HU) is enhanced, from less to more; below 1 takes contrast
        medium away. organs: how far organs move apart, at most. fatty: how far what is as bright as liver darkens, at most.
    noise: standard deviation, at most. grain: standard deviation of its blur in pixels, at most; 0 is white.
    blur, sharpen: of the kernel; pixels, and how much of the difference to a blurred copy is added, at most.
    streaks: probability of streaks, and their largest amplitude. metal: probability of a piece of metal with streaks.
    filled: probability that gas in bowel and stomach is fluid, food or contrast medium. gassy: that some bowel holds gas.
    cut: probability that the field of view cuts the body's sides.
    """

    share: float = 0.5
    phase: tuple[float, float] = (0.0, 1.8)
    organs: float = 35.0
    fatty: float = 50.0
    noise: float = 45.0
    grain: float = 1.2
    blur: float = 1.0
    sharpen: float = 1.0
    streaks: tuple[float, float] = (0.25, 40.0)
    metal: float = 0.04
    filled: float = 0.3
    gassy: float = 0.15
    cut: float = 0.08


PLAIN = 45.0  # HU of soft tissue without contrast medium


def randomise_units(units: Tensor, r: CtRandomisation, numbers: RandomNumbers) -> Tensor:
    """Slices (B, S, S) in Hounsfield units, as another hospital could have taken them.

    Air round the body stays as it is. Everything random comes from `numbers`.
    """
    body = _body(units)
    x = _contents(units, body, r, numbers)
    x = _contrast(x, r, numbers)
    x = _kernel(x, r, numbers)
    x = x + _noise(x, r, numbers) + _streaks(x, r, numbers)
    x = _metal(x, body, r, numbers)
    return _cut(torch.where(body, x, units), r, numbers)


def _body(units: Tensor) -> Tensor:
    """What is not open air, bool (B, S, S): closed by a few pixels, so that skin folds belong to it."""
    solid = (units > GAS).float()[:, None]
    # What is within reach of tissue on every side is inside: gas and lung too.
    near = torch.ones_like(solid, dtype=torch.bool)
    for dims, flipped in (((-1,), False), ((-1,), True), ((-2,), False), ((-2,), True)):
        run = solid.flip(dims) if flipped else solid
        run = run.cummax(dims[0]).values
        near &= (run.flip(dims) if flipped else run) > 0
    return near[:, 0]


def _contents(x: Tensor, body: Tensor, r: CtRandomisation, numbers: RandomNumbers) -> Tensor:
    """Bowel and stomach hold other things: gas becomes fluid, food or contrast medium, some soft parts become gas."""
    size = x.shape[-1]
    gas = (x < GAS) & body
    lung = gas.float().mean((1, 2), keepdim=True) > LUNG_SHARE * body.float().mean((1, 2), keepdim=True)
    food = numbers.uniform(-60, 90) + 60 * numbers.uniform(0, 1) * numbers.field(size, 24)
    tagged = numbers.uniform(150, 900) + 60 * numbers.field(size, 16)
    new = torch.where(numbers.often(0.4), tagged, food)
    x = torch.where(gas & ~lung & numbers.often(r.filled), new, x)
    # Lumps of smooth noise stand for loops of bowel that hold gas or food; they keep away from fat and bone.
    loops = (numbers.field(size, 9) > numbers.uniform(1.3, 2.2)) & (x > -20) & (x < 120) & body
    inside = torch.where(numbers.often(0.6), numbers.uniform(-1000, -700).expand_as(x), food)
    return torch.where(loops & numbers.often(r.gassy), inside, x)


def _contrast(x: Tensor, r: CtRandomisation, numbers: RandomNumbers) -> Tensor:
    """Contrast medium comes or goes, organs move apart, a liver gets fatty."""
    size = x.shape[-1]
    soft = ((x - 0) / 30).sigmoid() * (
        (400 - x) / 60
    ).sigmoid()  # 1 for soft tissue and vessels, 0 for fat and dense bone
    factor = numbers.uniform(*r.phase)
    enhanced = torch.where(x > PLAIN, PLAIN + (x - PLAIN) * factor, x)
    x = torch.where(numbers.often(r.share), torch.lerp(x, enhanced, soft), x)
    apart = numbers.field(size, 5).clamp(-2, 2) / 2 * numbers.uniform(0, r.organs)
    x = torch.where(numbers.often(r.share), x + apart * soft, x)
    organ = torch.exp(
        -(((x - numbers.uniform(45, 130)) / 12) ** 2)
    )  # one range of grey, such as the liver's or the spleen's
    moved = torch.where(numbers.often(0.5), numbers.uniform(-r.fatty, 0), numbers.uniform(0, 1.5 * r.fatty))
    return torch.where(
        numbers.often(r.share), x + moved * organ * (1 + 0.5 * numbers.field(size, 4)).clamp(0, 1.5), x
    )


def _kernel(x: Tensor, r: CtRandomisation, numbers: RandomNumbers) -> Tensor:
    """A soft or a sharp kernel."""
    soft = blur(x, numbers.uniform(0.3, max(r.blur, 0.31)))
    amount = torch.where(numbers.often(0.5), numbers.uniform(-1, 0), numbers.uniform(0, r.sharpen))
    return torch.where(numbers.often(r.share), x + amount * (x - soft), x)


def _noise(x: Tensor, r: CtRandomisation, numbers: RandomNumbers) -> Tensor:
    """Noise of one texture; stronger in the middle of the body, where less light comes through."""
    size = x.shape[-1]
    white = numbers.white(size)
    blurred = blur(white, numbers.uniform(0.3, max(r.grain, 0.31)))
    grain = torch.where(
        numbers.often(0.3), white, blurred / blurred.std((1, 2), keepdim=True).clamp_min(1e-3)
    )
    along = torch.linspace(-1, 1, size, device=x.device)
    middle = torch.exp(-(along[:, None] ** 2 + along[None] ** 2) / 0.5)
    level = numbers.uniform(0, 1) ** 2 * r.noise * (0.6 + 0.6 * middle)
    return torch.where(numbers.often(r.share), grain * level, 0)


def _streaks(x: Tensor, r: CtRandomisation, numbers: RandomNumbers) -> Tensor:
    """Lines from side to side, as arms, hips and shoulders throw them: smooth along one direction, rough across it."""
    often, amplitude = r.streaks
    size = x.shape[-1]
    along = torch.linspace(-1, 1, size, device=x.device)
    angle = numbers.uniform(-0.25, 0.25)
    across = along[None, :, None] * angle.cos() + along[None, None, :] * angle.sin()
    waves = sum(
        torch.sin(across * numbers.uniform(20, 140) + numbers.uniform(0, 2 * math.pi))
        * numbers.uniform(0.2, 1)
        for _ in range(4)
    )
    hill = torch.exp(
        -(((along[None, :, None] - numbers.uniform(-0.4, 0.4)) / numbers.uniform(0.1, 0.5)) ** 2)
    )
    return torch.where(numbers.often(often), waves / 2 * hill * numbers.uniform(0, amplitude), 0)


def _metal(x: Tensor, body: Tensor, r: CtRandomisation, numbers: RandomNumbers) -> Tensor:
    """A small piece of metal in the body, with rays of dark and bright from it."""
    size = x.shape[-1]
    along = torch.linspace(-1, 1, size, device=x.device)
    down, right = (
        along[None, :, None] - numbers.uniform(-0.4, 0.4),
        along[None, None, :] - numbers.uniform(-0.6, 0.6),
    )
    distance = (down**2 + right**2).sqrt()
    turn = torch.atan2(down, right)
    rays = torch.sin(turn * 2 * torch.round(numbers.uniform(1, 6)) + numbers.uniform(0, 6.28))
    there = numbers.often(r.metal) & body
    x = torch.where(there, x + rays * numbers.uniform(20, 150) * torch.exp(-distance / 0.3), x)
    return torch.where(there & (distance < numbers.uniform(0.01, 0.03)), 2500.0, x)


def _cut(x: Tensor, r: CtRandomisation, numbers: RandomNumbers) -> Tensor:
    """A round field of view that is narrower than the body; outside there is air."""
    along = torch.linspace(-1, 1, x.shape[-1], device=x.device)
    outside = (along[None, :, None] ** 2 + along[None, None, :] ** 2).sqrt() > numbers.uniform(0.7, 0.95)
    return torch.where(outside & numbers.often(r.cut), -1000.0, x)
