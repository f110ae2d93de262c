"""Whole heads imitated round stripped brains: fluid, skull with marrow, muscle, fat and skin, eyes, a neck, noise in the air."""

import numpy as np
from scipy import ndimage


def head_round(
    brain: np.ndarray, spacing: tuple[float, float, float], rng: np.random.Generator, margin: float = 26.0
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """A head round a stripped brain, float32 (X, Y, Z) RAS in [0, 1], and where the brain's array lies in it.

    margin: millimetres of the array beyond the brain's own. spacing: millimetres a voxel.
    """
    pads = [int(np.ceil(margin / s)) for s in spacing]
    head = np.pad(brain, [(p, p) for p in pads])
    inside = tuple(slice(p, p + n) for p, n in zip(pads, brain.shape))
    mask = head > 0.02
    closed = ndimage.binary_closing(np.pad(mask, 12), iterations=8)[12:-12, 12:-12, 12:-12]
    closed = ndimage.binary_fill_holes(closed)
    away = ndimage.distance_transform_edt(~closed, sampling=spacing).astype(np.float32)  # mm from the brain
    uneven = ndimage.gaussian_filter(rng.standard_normal(head.shape).astype(np.float32), 6)
    away = away + 1.2 * uneven / uneven.std()
    x, y, z = (
        (np.arange(n, dtype=np.float32) - n / 2).reshape([-1 if i == a else 1 for i in range(3)]) * s
        for a, (n, s) in enumerate(zip(head.shape, spacing))
    )
    mottled = ndimage.gaussian_filter(rng.standard_normal(head.shape).astype(np.float32), 1)
    mottled = 0.05 * mottled / mottled.std()
    shells = ((2.0, 0.12), (4.0, 0.04), (6.0, 0.30), (7.5, 0.04), (10.0, 0.35), (14.0, 0.85), (15.5, 0.5))
    tissue, inner = np.zeros(head.shape, np.float32), -50.0
    for outer, grey in shells:
        tissue = np.where((away > inner) & (away <= outer), np.float32(grey), tissue)
        inner = outer
    low = z < z.min() + 0.22 * (z.max() - z.min())
    neck = (x**2 + (y + 12) ** 2 < 52**2) & low & (tissue == 0)
    spine = (x**2 + (y + 20) ** 2 < 9**2) & low & ~closed
    face = (x**2 + ((y - 70) / 0.9) ** 2 < 48**2) & (z < 5) & (tissue == 0)
    tissue = np.where(neck | face, 0.4 + mottled, tissue)
    tissue = np.where(spine, 0.55, tissue)
    for side in (-32, 32):
        eye = (x - side) ** 2 + (y - 82) ** 2 + (z + 25) ** 2 < 12**2
        tissue = np.where(eye & ~closed, 0.15, tissue)
    tissue = np.where(tissue > 0, tissue + mottled, 0)
    whole = np.where(mask, head, np.where(closed, 0.12 + 0.5 * mottled, tissue))
    noise = np.hypot(*(0.012 * rng.standard_normal((2, *head.shape)).astype(np.float32)))
    whole = ndimage.gaussian_filter(whole, 0.4)
    return np.where(mask, head, np.clip(whole + noise, 0, 1)).astype(np.float32), inside
