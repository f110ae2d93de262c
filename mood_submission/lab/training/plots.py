"""Pictures of a run: loss curves, reconstructions, restorations."""

import csv
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from ...networks.pixelsnail import PixelSNAIL
from ...networks.vae import VAE
from ...networks.vqvae import VQVAE
from ...restoration.restore import restore
from .cache import SliceData

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def curves(log: Path, picture: Path) -> None:
    """One small plot for each column of the CSV log, over minutes."""
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name not in ("step", "minutes")]
    figure, axes = plt.subplots(1, len(columns), figsize=(3 * len(columns), 2.6), squeeze=False)
    for axis, name in zip(axes[0], columns):
        points = [(float(r["minutes"]), float(r[name])) for r in rows if r[name]]
        axis.plot(*zip(*points), marker=".")
        axis.set(title=name, xlabel="minutes")
        axis.grid(alpha=0.3)
    _save(figure, picture)


@torch.inference_mode()
def reconstructions(model: VQVAE | VAE, data: SliceData, picture: Path, count: int = 6) -> None:
    """Held-out slices, their reconstructions and the differences, one column a slice."""
    slices, position = data.plain(_some_filled(data, count))
    decoded = model.reconstruct(slices, position)
    _grid({"slice": slices, "reconstruction": decoded, "difference": (slices - decoded).abs()}, picture)


@torch.inference_mode()
def restorations(
    vqvae: VQVAE, prior: PixelSNAIL, data: SliceData, picture: Path, *, threshold: float, count: int = 6
) -> None:
    """Held-out slices with a bright square planted, their reconstruction, NLL, and two restorations, one column a slice."""
    slices, position = data.plain(_some_filled(data, count))
    middle = slices.shape[-1] // 2
    slices[:, middle - 12 : middle + 8, middle + 8 : middle + 28] = slices.amax() * 0.9
    codes = vqvae.encode(slices, position)
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(len(codes), 2, *codes.shape[1:], generator=generator).to(slices.device)
    restored = restore(prior, codes, position, uniforms, threshold)
    rows = {
        "slice, square planted": slices,
        "reconstruction": vqvae.decode(codes, position),
        "NLL": prior.nll(codes, position),
    }
    rows |= {f"restoration {i + 1}": vqvae.decode(restored[:, i], position) for i in range(2)}
    _grid(rows, picture)


def _some_filled(data: SliceData, count: int) -> Tensor:
    filled = data.filled.nonzero()[:, 0]
    return filled[torch.arange(count, device=filled.device) * len(filled) // count]


def _grid(rows: dict[str, Tensor], picture: Path) -> None:
    columns = len(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), columns, figsize=(2 * columns, 2 * len(rows)), squeeze=False)
    low, high = (float(f(next(iter(rows.values())))) for f in (torch.amin, torch.amax))
    for (name, images), line in zip(rows.items(), axes):
        scale = {"cmap": "inferno"} if name in ("NLL", "difference") else {"cmap": "gray", "vmin": low, "vmax": high}
        for image, axis in zip(images, line):
            axis.imshow(image.float().cpu().numpy(), **scale)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    _save(figure, picture)


def _save(figure: plt.Figure, picture: Path) -> None:
    figure.tight_layout()
    figure.savefig(picture, dpi=80)
    plt.close(figure)
