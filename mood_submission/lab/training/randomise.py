"""Domain randomisation: what harmonisation leaves different between scanners, and what else a healthy scan may look like.

Works on stacks of slices in [0, 1], either each slice with changes of its own (batches for the VQ-VAE and the prior) or all
alike, as one volume (what anomalies are planted in). Everything random comes from the generator.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ...preprocessing.tone import open_air
from .resample import affine_of, blur, warp


@dataclass(frozen=True)
class Randomisation:
    """Ranges of the random changes. Lengths are shares of the slice's side, grey values are on the [0, 1] scale.

    scale, proportions: a slice is enlarged by up to this share, or made smaller, on the whole and along each axis.
    degrees: the largest rotation.
    shift: the longest translation.
    elastic: standard deviation of a control point's displacement.
    gamma: the exponent of the tone curve lies between 1 / gamma and gamma.
    tone: how far a random monotone curve bends.
    bias: the largest logarithm of the bias field at a control point.
    noise: the largest standard deviation, white or smooth.
    blur: the largest standard deviation in pixels.
    sharpen: how much of the difference to a blurred copy is added at most.
    lines: the largest amplitude of the ripples along an axis that stand for Gibbs ringing and motion.
    rim: probability of a bright rim round the anatomy, as bad skull-stripping leaves it.
    cut: probability that some of the anatomy's border is missing.
    flip: probability of left-right.
    share: of the slices that get each of the other changes.
    window: probability of another clinical window, in which fat may be black.
    phase: how far organs that take up contrast get brighter or darker at most.
    filled: probability that gas in the bowel is bright contrast instead.
    enhanced: how far bright tissue, where contrast medium shows, gets brighter or loses its contrast at most: 1 for all of it.
    thick: in a volume, the largest standard deviation of a blur along z, in slices, as thicker slices have it.
    streaks: the largest amplitude of the streaks that metal, arms or too few photons leave.
    truncated: probability that the field of view ends within the body at the sides.
    tissues: in a volume, how far a tissue gets brighter or darker at some places, alike on both sides, as deep nuclei and the
        brainstem do from scanner to scanner.
    arteries: in a volume, probability that arteries are bright, as inflowing blood makes them on some scanners.
    floor: whether what is no air stays above the threshold of air.
    """

    scale: float = 0.12
    proportions: float = 0.08
    degrees: float = 10.0
    shift: float = 0.03
    elastic: float = 0.012
    gamma: float = 1.3
    tone: float = 0.06
    bias: float = 0.3
    noise: float = 0.05
    blur: float = 0.8
    sharpen: float = 1.0
    lines: float = 0.02
    rim: float = 0.2
    cut: float = 0.1
    flip: float = 0.5
    share: float = 0.5
    window: float = 0.0
    phase: float = 0.0
    filled: float = 0.0
    enhanced: float = 0.0
    thick: float = 0.0
    streaks: float = 0.0
    truncated: float = 0.0
    tissues: float = 0.0
    arteries: float = 0.0
    floor: bool = True


MILD = Randomisation(
    scale=0.1,
    proportions=0.05,
    degrees=7,
    gamma=1.2,
    tone=0.04,
    bias=0.2,
    noise=0.01,
    blur=0.6,
    sharpen=0.3,
    lines=0.0,
    rim=0.15,
    cut=0.05,
    tissues=0.03,
    arteries=0.5,
)
MEDIUM = Randomisation(tissues=0.05, arteries=0.5)
BOLD = Randomisation(
    scale=0.15,
    proportions=0.1,
    degrees=15,
    gamma=1.4,
    tone=0.08,
    bias=0.4,
    noise=0.04,
    blur=0.7,
    tissues=0.06,
    arteries=0.6,
)
CT_MILD = replace(
    MILD,
    scale=0.08,
    degrees=6,
    gamma=1.12,
    tone=0.03,
    bias=0.05,
    rim=0,
    cut=0,
    tissues=0,
    arteries=0,
    window=0.3,
    phase=0.06,
    filled=0.1,
    enhanced=0.3,
    thick=0.5,
    floor=False,
)
CT_MEDIUM = replace(
    CT_MILD,
    scale=0.12,
    proportions=0.08,
    degrees=10,
    gamma=1.25,
    tone=0.05,
    noise=0.04,
    sharpen=0.8,
    lines=0.01,
    phase=0.1,
    filled=0.2,
    enhanced=0.7,
    thick=0.8,
    streaks=0.06,
    truncated=0.1,
)
CT_BOLD = replace(
    CT_MEDIUM,
    scale=0.15,
    proportions=0.1,
    degrees=15,
    gamma=1.4,
    tone=0.08,
    window=0.5,
    phase=0.15,
    filled=0.3,
    enhanced=1.0,
    thick=1.2,
    streaks=0.12,
    truncated=0.2,
)
RANDOMISATIONS = {
    "brain": {"mild": MILD, "medium": MEDIUM, "bold": BOLD},
    "abdom": {"mild": CT_MILD, "medium": CT_MEDIUM, "bold": CT_BOLD},
}


class RandomNumbers:
    """Random numbers for a stack of `count` slices: one set for each slice, or one for all of a volume."""

    def __init__(self, count: int, together: bool, generator: torch.Generator):
        self.count, self.together, self.generator = count, together, generator
        self.sets, self.device = 1 if together else count, generator.device

    def uniform(self, low: float, high: float) -> Tensor:
        """Numbers between `low` and `high`, (count, 1, 1), or one for all slices, (1, 1, 1)."""
        return low + (high - low) * torch.rand(self.sets, 1, 1, generator=self.generator, device=self.device)

    def often(self, share: float) -> Tensor:
        """True with probability `share`; bool, of the shape of `uniform`."""
        return self.uniform(0, 1) < share

    def field(self, size: int, points: int) -> Tensor:
        """A smooth random field of standard deviation about 1, (count, size, size). In a volume it changes smoothly along z."""
        if self.together:
            deep = max(2, round(points * self.count / size))
            knots = torch.randn(1, 1, deep, points, points, generator=self.generator, device=self.device)
            return F.interpolate(knots, (self.count, size, size), mode="trilinear", align_corners=True)[0, 0] * 1.3
        knots = torch.randn(self.count, 1, points, points, generator=self.generator, device=self.device)
        return F.interpolate(knots, (size, size), mode="bicubic", align_corners=True)[:, 0]

    def white(self, size: int) -> Tensor:
        return torch.randn(self.count, size, size, generator=self.generator, device=self.device)


def deform(slices: Tensor, size: int, r: Randomisation, numbers: RandomNumbers) -> Tensor:
    """Slices (B, S, S) -> (B, size, size) after an affine map and a smooth displacement. Zeros come in from outside."""
    zoom = 1 / (1 + numbers.uniform(-r.scale, r.scale)[:, 0, 0])
    stretch = 1 + numbers.uniform(-r.proportions, r.proportions)[:, 0, 0]
    angle = numbers.uniform(-r.degrees, r.degrees)[:, 0, 0] * (math.pi / 180)
    mirror = torch.where(numbers.often(r.flip)[:, 0, 0], -1.0, 1.0)
    shift = [2 * numbers.uniform(-r.shift, r.shift)[:, 0, 0] for _ in range(2)]
    bend = torch.stack([numbers.field(size, 7) for _ in range(2)], -1) * (2 * r.elastic)
    return warp(slices, size, affine_of(angle, zoom, mirror * stretch, shift), bend)


def recolour(slices: Tensor, r: Randomisation, numbers: RandomNumbers, threshold: float) -> Tensor:
    """Slices (B, S, S) in [0, 1] with other borders, tones, sharpness and noise. Air stays air, and the rest stays above it."""
    air, size = open_air(slices < threshold), slices.shape[-1]
    x, air = _borders(slices, air, r, numbers)
    x, air = _truncated(x, air, r, numbers)
    x = _ct(x, air, r, numbers, threshold)
    if r.arteries and numbers.together:
        x = torch.where(numbers.often(r.arteries), _with_arteries(x, air, numbers), x)
    if r.tissues and numbers.together:
        x = torch.where(numbers.often(r.share), _tissues_apart(x, r, numbers), x)
    x = torch.where(numbers.often(r.share), _bent(x.clamp_min(0), r, numbers), x)
    x = torch.where(numbers.often(r.share), x * (numbers.field(size, 4).clamp(-2, 2) * (r.bias / 2)).exp(), x)
    soft = blur(x, numbers.uniform(0.3, max(r.blur, 0.3)))
    # -1 makes slices as soft as `soft`.
    amount = torch.where(numbers.often(0.5), numbers.uniform(-1, 0), numbers.uniform(0, r.sharpen))
    x = torch.where(numbers.often(r.share), x + amount * (x - soft), x)
    if r.lines:
        x = torch.where(numbers.often(r.share / 2), x + _ripples(size, r, numbers), x)
    white = numbers.white(size)
    if r.streaks:
        x = torch.where(numbers.often(r.share / 2), x + _streaks(size, r, numbers), x)
    grain = torch.where(numbers.often(0.5), white, 2.2 * blur(white, numbers.uniform(0.5, 1.0)))
    x = torch.where(numbers.often(r.share), x + grain * numbers.uniform(0, r.noise), x)
    return torch.where(air, 0, x.clamp(threshold if r.floor else 0, 1))


def randomise(
    slices: Tensor,
    size: int,
    r: Randomisation,
    threshold: float,
    generator: torch.Generator,
    *,
    together: bool = False,
) -> Tensor:
    """Slices (B, S, S) in [0, 1] -> (B, size, size) in [0, 1], deformed and with other greys. together: all alike."""
    numbers = RandomNumbers(len(slices), together, generator)
    if together and r.thick:
        slices = torch.where(numbers.often(r.share), _thicker(slices, float(numbers.uniform(0.3, r.thick))), slices)
    return recolour(deform(slices, size, r, numbers), r, numbers, threshold)


def _bent(x: Tensor, r: Randomisation, numbers: RandomNumbers) -> Tensor:
    """Slices after a tone curve that rises: a power, and two soft bends. 0 stays 0."""
    exponent = torch.exp2(numbers.uniform(-1, 1) * math.log2(r.gamma))
    # The bright tissue stays where harmonisation puts it.
    curve = 0.6 * (x / 0.6) ** exponent
    for turns in (1, 2):
        curve = curve + numbers.uniform(-1, 1) * r.tone / turns * torch.sin(math.pi * turns * x.clamp(0, 1))
    return curve * numbers.uniform(0.92, 1.08)


def _with_arteries(x: Tensor, air: Tensor, numbers: RandomNumbers) -> Tensor:
    """A volume with bright tubes in some of its dark clefts, left much as right. They are a few pixels wide.

    A tube runs where two smooth random fields are both about 0.
    """
    size = x.shape[-1]

    def much_alike(points: int) -> Tensor:
        field = numbers.field(size, points)
        return (field + 0.8 * field.flip(-1)) / 1.28

    width = numbers.uniform(0.12, 0.3)
    tube = torch.exp(-(much_alike(18) ** 2 + much_alike(18) ** 2) / (2 * width**2))
    # In fluid and in its neighbours, and not next to air, where skull-stripping has left other things.
    fluid = F.max_pool2d((x < 0.36).float()[:, None], 3, 1, 1)[:, 0]
    inner = 1 - F.max_pool2d(air.float()[:, None], 7, 1, 3)[:, 0]
    here = torch.sigmoid((much_alike(4) - numbers.uniform(-0.5, 1.0)) / 0.2)
    weight = tube * blur(fluid * inner, numbers.uniform(0.3, 0.6)) * here
    return x + weight * (numbers.uniform(0.7, 1.1) - x).clamp_min(0)


def _tissues_apart(x: Tensor, r: Randomisation, numbers: RandomNumbers) -> Tensor:
    """A volume whose greys of two tissues move smoothly from place to place, left as right. The order of greys stays."""
    for grey in (numbers.uniform(0.3, 0.5), numbers.uniform(0.4, 0.65)):
        field = numbers.field(x.shape[-1], 6)
        alike = ((field + field.flip(-1)) / math.sqrt(2)).clamp(-1.5, 1.5)
        x = x + numbers.uniform(0, r.tissues) * alike * torch.exp(-(((x - grey) / 0.1) ** 2))
    return x


def _ct(x: Tensor, air: Tensor, r: Randomisation, numbers: RandomNumbers, threshold: float) -> Tensor:
    """What differs between CT scans: contrast in the bowel and in organs, and the window."""
    if r.filled:
        gas = (x < threshold) & ~air
        share = lambda mask: mask.float().mean((1, 2), keepdim=True)  # noqa: E731
        # More of it would be fat.
        few = share(gas) < 0.03 * share(~air)
        bright = (numbers.uniform(0.7, 1.1) + 0.05 * numbers.field(x.shape[-1], 20)).clamp(0, 1)
        x = torch.where(gas & few & numbers.often(r.filled), bright, x)
    if r.phase:
        organs = torch.exp(-(((x - 0.55) / 0.07) ** 2))
        x = x + numbers.uniform(-1, 1) * r.phase * organs * (1 + 0.5 * numbers.field(x.shape[-1], 4)).clamp(0, 2)
    if r.enhanced:
        # Bone is brighter still, and keeps its greys.
        bright = (x - 0.55).clamp_min(0) * torch.sigmoid((0.85 - x) / 0.03)
        x = torch.where(numbers.often(r.share), x + numbers.uniform(-1, 1) * r.enhanced * bright, x)
    if r.window:
        low = numbers.uniform(-0.08, 0.22)
        # Soft tissue stays where it is.
        other = 0.5 * (x - low) / (0.5 - low) * numbers.uniform(0.9, 1.1)
        x = torch.where(numbers.often(r.window), other.clamp_min(0), x)
    return x


def _borders(x: Tensor, air: Tensor, r: Randomisation, numbers: RandomNumbers) -> tuple[Tensor, Tensor]:
    """Slices and air after bad skull-stripping, which leaves a bright rim round the anatomy, or takes some of the border off."""
    size, solid = x.shape[-1], (~air).float()
    reach = max(1, round(size * 0.02))
    if r.rim:
        width = 2 * reach + 1
        near = F.max_pool2d(solid[:, None], width, 1, reach)[:, 0] - solid
        patchy = numbers.field(size, 9) > numbers.uniform(-0.5, 1.2)
        on = numbers.often(r.rim) & (near > 0.5) & patchy
        bright = (numbers.uniform(0.5, 1.0) * (1 + 0.25 * numbers.field(size, 40))).clamp(0.1, 1).expand_as(x)
        x, air = torch.where(on, bright, x), air & ~on
    if r.cut:
        width = 2 * reach + 1
        near = solid - (1 - F.max_pool2d(1 - solid[:, None], width, 1, reach)[:, 0])
        off = numbers.often(r.cut) & (near > 0.5) & (numbers.field(size, 9) > numbers.uniform(0, 1.5))
        x, air = torch.where(off, 0, x), air | off
    return x, air


def _truncated(x: Tensor, air: Tensor, r: Randomisation, numbers: RandomNumbers) -> tuple[Tensor, Tensor]:
    """Slices and air where the field of view ends within the body, at one side or at both."""
    if not r.truncated:
        return x, air
    across = torch.linspace(0, 1, x.shape[-1], device=x.device).expand(1, 1, -1)
    left, right = (numbers.uniform(0.08, 0.22) * numbers.often(0.7) for _ in range(2))
    off = numbers.often(r.truncated) & ((across < left) | (across > 1 - right))
    return torch.where(off, 0, x), air | off


def _thicker(slices: Tensor, sigma: float) -> Tensor:
    """A volume's slices (N, S, S), each mixed with its neighbours as a Gaussian along z weighs them. sigma: in slices."""
    reach = math.ceil(2 * sigma)
    weights = torch.exp(-(torch.arange(-reach, reach + 1, dtype=slices.dtype) ** 2) / (2 * sigma**2))
    padded = torch.cat([slices[:1].expand(reach, -1, -1), slices, slices[-1:].expand(reach, -1, -1)])
    mixed = sum(w * padded[i : i + len(slices)] for i, w in enumerate((weights / weights.sum()).tolist()))
    assert isinstance(mixed, Tensor)
    return mixed


def _streaks(size: int, r: Randomisation, numbers: RandomNumbers) -> Tensor:
    """Dark and bright lines of one direction, strongest along one of them. Each slice has lines of its own."""
    axis = torch.linspace(-1, 1, size, device=numbers.device)
    angle = numbers.uniform(0, math.pi)
    # How far each pixel lies from the strongest line.
    far = axis[None, :, None] * angle.cos() + axis[None, None, :] * angle.sin() - numbers.uniform(-0.4, 0.4)
    lines = torch.randn(numbers.count, 2 * size, generator=numbers.generator, device=numbers.device)
    at = ((far + 2) * (size / 2)).long().clamp(0, 2 * size - 1).expand(numbers.count, -1, -1)
    drawn = lines.gather(1, at.flatten(1)).view(at.shape)
    hill = torch.exp(-((far / numbers.uniform(0.1, 0.4)) ** 2))
    return drawn * hill * numbers.uniform(0, r.streaks)


def _ripples(size: int, r: Randomisation, numbers: RandomNumbers) -> Tensor:
    """Waves along one of the axes, strongest at a random place."""
    axis = torch.arange(size, device=numbers.device, dtype=torch.float32)[None]
    wave = torch.sin(axis * numbers.uniform(0.8, 2.2)[:, 0] + numbers.uniform(0, 6.28)[:, 0])
    hill = torch.exp(-(((axis / size - numbers.uniform(0, 1)[:, 0]) / 0.3) ** 2))
    wave = (wave * hill)[:, None] * numbers.uniform(0, r.lines)
    return torch.where(numbers.often(0.5), wave, wave.transpose(1, 2))
