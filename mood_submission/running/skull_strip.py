"""Removes skulls from volumes before they are scored. The masks may be kept, and are used again where they exist."""

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..preprocessing.skull import StrippingError, brain_mask, is_whole_head
from ..volumes import Volume, VolumeError, read_volume, write_mask

FOLDER = "brain_masks"


@dataclass(frozen=True)
class SkullStrip:
    """Leaves nothing but the brain in a volume.

    when: "yes" strips every volume. "auto" strips those that look like whole heads; one that cannot be stripped stays as it
        is, and its notes say so.
    masks: folder where masks are kept, on the volumes' own grids. None to keep none.
    """

    when: str = "auto"
    masks: Path | None = None

    def __call__(self, volume: Volume) -> Volume:
        """The volume without its skull. Raises VolumeError where "yes" asks for it and stripping fails."""
        kept = None if self.masks is None else self.masks / volume.source.output_name
        if kept is None or not kept.exists():
            if self.when == "auto" and not is_whole_head(volume.data, volume.spacing):
                return volume
        try:
            mask = self._mask(volume, kept)
        except StrippingError as error:
            if self.when == "yes":
                raise VolumeError(f"{volume.path}: {error}") from None
            note = f"{volume.path}: looks like a whole head, and is scored as it is: {error}"
            warnings.warn(note, stacklevel=2)
            return dataclasses.replace(volume, notes=(*volume.notes, note))
        low = min(0.0, float(volume.data.min()))
        data = np.where(mask, volume.data - np.float32(low), np.float32(0))
        note = f"{volume.path}: skull-stripped"
        return dataclasses.replace(volume, data=np.asfortranarray(data, np.float32), notes=(*volume.notes, note))

    def _mask(self, volume: Volume, kept: Path | None) -> np.ndarray:
        """The volume's mask, (X, Y, Z) bool: the kept one, or a new one that is kept then."""
        if kept is not None and kept.exists():
            mask = read_volume(kept).data > 0.5
            if mask.shape != volume.data.shape:
                raise VolumeError(
                    f"{kept}: expected a mask of {volume.data.shape} voxels as {volume.path} has, found {mask.shape}"
                )
            return mask
        mask = brain_mask(volume.data, volume.spacing)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_mask(kept, mask.astype(np.uint8), volume.grid)
        return mask
