"""Makes pictures of a volume's slices and plots of its scores, as PNG in data URLs."""

import base64
import io
import math

import matplotlib
import numpy as np
from scipy import ndimage

matplotlib.use("Agg")
from matplotlib import colormaps, image  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

# Pixels of a picture's longer side.
SIDE = 360
PLANES = ("axial", "coronal", "sagittal")
# Labels are outlined in cyan, findings in white.
LABEL_COLOUR = (0.0, 0.9, 1.0)
FINDING_COLOUR = (1.0, 1.0, 1.0)
# The overlay is clear up to the first score, and strongest from the second on.
FAINT, STRONG = 0.3, 0.9


def plane(array: np.ndarray, name: str, place: tuple[int, int, int]) -> np.ndarray:
    """A slice of an array, (H, W). Superior or anterior is at the top, x or y runs to the right.

    array: (X, Y, Z) in RAS order.
    name: one of PLANES.
    place: (x, y, z) that the slice goes through.
    """
    x, y, z = place
    cut = {"axial": array[:, ::-1, z], "coronal": array[:, y, ::-1], "sagittal": array[x, :, ::-1]}[name]
    return cut.T


def plane_spacing(spacing: tuple[float, float, float], name: str) -> tuple[float, float]:
    """A slice's spacing in mm, from row to row and from column to column. name: one of PLANES."""
    x, y, z = spacing
    return {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}[name]


def resized(cut: np.ndarray, spacing: tuple[float, float], order: int) -> np.ndarray:
    """A slice with square pixels and a longer side of SIDE. order: of the spline that interpolates."""
    height, width = (n * d for n, d in zip(cut.shape, spacing))
    scale = SIDE / max(height, width)
    target = [max(1, round(side * scale)) for side in (height, width)]
    factors = [new / old for new, old in zip(target, cut.shape)]
    return ndimage.zoom(cut, factors, order=order, grid_mode=True, mode="nearest")


def grey(cut: np.ndarray, low: float, high: float) -> np.ndarray:
    """A slice as RGB, (H, W, 3) in [0, 1]. low, high: the values that become 0 and 1."""
    return np.repeat(((cut - low) / max(high - low, 1e-9)).clip(0, 1)[..., None], 3, axis=2)


def overlaid(background: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """A grey picture with scores over it, in a colour map that colour-blind people can read. Low scores are clear."""
    colours = colormaps["inferno"]((scores - 0.1).clip(0, 1))[..., :3]
    weight = (((scores - FAINT) / (STRONG - FAINT)).clip(0, 1) * 0.85)[..., None]
    return background * (1 - weight) + colours * weight


def outlined(picture: np.ndarray, mask: np.ndarray, colour: tuple[float, float, float], width: int = 2) -> np.ndarray:
    """The picture with a line round the mask (H, W)."""
    line = ndimage.binary_dilation(mask, iterations=width) & ~mask
    return np.where(line[..., None], np.array(colour), picture)


def data_url(picture: np.ndarray) -> str:
    """A picture (H, W, 3) in [0, 1] as a PNG in a data URL."""
    out = io.BytesIO()
    image.imsave(out, (picture.clip(0, 1) * 255).astype(np.uint8), format="png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def slices_at(
    volume: np.ndarray,
    scores: np.ndarray,
    spacing: tuple[float, float, float],
    place: tuple[int, int, int],
    *,
    mask: np.ndarray | None,
    label: np.ndarray | None,
    expected: np.ndarray | None,
) -> list[dict]:
    """The pictures of each plane through a place: the plane's name, and data URLs by title.

    The titles are "as it is", "as expected" (where `expected` is given), and "scores", which shows scores and outlines.

    volume, scores, mask, label, expected: (X, Y, Z) in RAS order. The last three may be None.
    spacing: (x, y, z) in mm.
    place: (x, y, z) in voxels.
    """
    low, high = (float(v) for v in np.percentile(volume[::2, ::2, ::2], (1, 99.8)))
    rows = []
    for name in PLANES:
        apart = plane_spacing(spacing, name)
        original = grey(resized(plane(volume, name, place), apart, 1), low, high)
        picture = overlaid(original, resized(plane(scores, name, place).astype(np.float32), apart, 1))
        for what, colour in ((label, LABEL_COLOUR), (mask, FINDING_COLOUR)):
            if what is not None:
                inside = resized((plane(what, name, place) > 0).astype(np.float32), apart, 1) > 0.5
                picture = outlined(picture, inside, colour)
        shown = {"as it is": data_url(original)}
        if expected is not None:
            cut = resized(plane(expected, name, place).astype(np.float32), apart, 1)
            shown["as expected"] = data_url(grey(cut, 0.0, float(np.percentile(expected[::2, ::2, ::2], 99.8))))
        rows.append({"plane": name, "pictures": shown | {"scores": data_url(picture)}})
    return rows


def _plot_url(figure: plt.Figure) -> str:
    out = io.BytesIO()
    figure.tight_layout()
    figure.savefig(out, dpi=100, facecolor="white")
    plt.close(figure)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def histogram(scores: np.ndarray, thresholds: dict[str, float]) -> str:
    """A plot of how many voxels have each score. thresholds: by share of healthy voxels, the score that they exceed."""
    figure, axis = plt.subplots(figsize=(4, 2.4))
    axis.hist(scores[scores > 0].ravel(), bins=60, range=(0, 1), log=True, color="#3b6ea8")
    for (share, score), style in zip(thresholds.items(), ("-", "--", ":")):
        axis.axvline(score, color="#b3541e", linestyle=style, label=f"{float(share):.2%} of healthy voxels exceed")
    axis.set(xlabel="voxel score", ylabel="voxels", xlim=(0, 1))
    if thresholds:
        axis.legend(fontsize=6)
    return _plot_url(figure)


def profile(scores: np.ndarray, threshold: float | None) -> str:
    """A plot of each axial slice's highest score. threshold: the score from which on there are findings."""
    figure, axis = plt.subplots(figsize=(4, 2.4))
    axis.plot(scores.max((0, 1)), color="#3b6ea8")
    if threshold is not None and math.isfinite(threshold):
        axis.axhline(threshold, color="#b3541e", linestyle="--", label="findings begin here")
        axis.legend(fontsize=6)
    axis.set(xlabel="axial slice (inferior to superior)", ylabel="highest score", ylim=(0, 1))
    axis.grid(alpha=0.3)
    return _plot_url(figure)
