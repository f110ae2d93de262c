"""Make toy cases with planted anomalies and their labels, in the organisers' folder layout."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...cli.command import run_command
from ...runtime.contract import REGIONS
from ...runtime.option_types import at_least, share
from ...runtime.options import option
from ..planting.anomalies import KINDS
from ..planting.phantoms import SMALLEST
from ..planting.toy import make_gross_toy, make_toy
from ..training.names_file import read_names


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """Options of `make-toy`."""

    region: str = option(None, choices=REGIONS)
    out: Path = option("folder to write under", "-o", "--out", metavar="DATA")
    source: Path | None = option("plant in these healthy volumes instead", "--from", metavar="FOLDER", default=None)
    names: str | None = option(
        "with --from: only the volumes NAME.nii.gz called so", metavar="A,B", default=None, not_with="names"
    )
    names_file: Path | None = option(
        "with --from: the same, one name a line", metavar="FILE", default=None, not_with="names"
    )
    volumes: int | None = option("how many (default: 4, with --from all)", type=at_least(1), default=None)
    size: int | None = option("voxels a side of made-up volumes (default: 128)", type=at_least(SMALLEST), default=None)
    seed: int = option("of what is planted where, and of made-up volumes", type=at_least(0), default=0)
    kinds: tuple[str, ...] = option(
        f"of anomaly (default: all, {', '.join(KINDS)})", choices=KINDS, metavar="KIND", default=KINDS
    )
    healthy_fraction: float = option("share left healthy", type=share, default=0.5)
    gross: bool = option(
        "instead: each volume as it is, and with what no score must get wrong: dark balls of 10 to 50 mm, half of it missing, "
        "blurred, inverted, noisy, turned ...",
        default=False,
        not_with="series",
    )
    sizes: bool = option(
        "instead: each volume as it is, and with a lesion of 2 to 45 mm, one a case: balls, soft dark ones, shifts",
        default=False,
        not_with="series",
    )

    def __post_init__(self) -> None:
        if self.source is None and (self.names or self.names_file):
            raise argparse.ArgumentError(None, "--names and --names-file choose from the folder given with --from")
        if self.source is not None and self.size is not None:
            raise argparse.ArgumentError(None, "--size is for made-up volumes; with --from volumes keep their own grid")

    def chosen_names(self) -> list[str] | None:
        """Names of the volumes to take; None for all. Raises ValueError for a file without names, OSError without the file."""
        if self.names_file is None:
            return self.names.split(",") if self.names else None
        names = read_names(self.names_file)
        if not names:
            raise ValueError(f"{self.names_file}: expected names of volumes, found none")
        return names


def make(options: ToyOptions) -> list[str]:
    """Write the cases. Returns a line on them. Raises ValueError, OSError."""
    if options.gross or options.sizes:
        return _make_series(options, "gross" if options.gross else "sizes")
    records = make_toy(
        options.region,
        options.out,
        volumes=options.volumes,
        size=options.size,
        seed=options.seed,
        source=options.source,
        kinds=options.kinds,
        healthy_fraction=options.healthy_fraction,
        names=options.chosen_names(),
    )
    source, planted = options.source, sum(record["kind"] is not None for record in records.values())
    origins = f"volumes of {source.name}" if source else next(iter(records.values()))["origin"]
    where = options.out / options.region
    return [f"{len(records)} {options.region} cases ({origins}), {planted} with an anomaly, under {where}"]


def _make_series(options: ToyOptions, series: str) -> list[str]:
    records = make_gross_toy(
        options.region,
        options.out,
        series,
        volumes=options.volumes,
        size=options.size or 128,
        seed=options.seed,
        source=options.source,
        names=options.chosen_names(),
    )
    healthy = sum(record["kind"] is None for record in records.values())
    return [f"{len(records)} {options.region} cases of {healthy} healthy volumes, under {options.out / options.region}"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="mood-submission make-toy",
        description=__doc__,
        epilog="Writes DATA/REGION/toy/NAME.nii.gz and DATA/REGION/toy_label/{pixel,sample,anomalies.json}. Without "
        "--from, brains are deformed from nilearn's MNI152 template where nilearn is installed, else procedural.",
    )
    return run_command(parser, ToyOptions, make, argv)
