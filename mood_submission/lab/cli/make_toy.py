"""Make toy cases with planted anomalies and their labels, in the organisers' folder layout."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...cli.options import add_names_file, add_region
from ...runtime.option_types import at_least, share
from ..planting.anomalies import KINDS
from ..planting.phantoms import SMALLEST
from ..planting.toy import make_toy


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mood-submission make-toy",
        description=__doc__,
        epilog="Writes DATA/REGION/toy/NAME.nii.gz and DATA/REGION/toy_label/{pixel,sample,anomalies.json}. Without "
        "--from, brains are deformed from nilearn's MNI152 template where nilearn is installed, else procedural.",
    )
    add_region(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DATA", help="folder to write under")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="plant in these healthy volumes instead"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--names", metavar="A,B", help="with --from: only the volumes NAME.nii.gz called so")
    add_names_file(chosen, "with --from: the same, one name a line")
    parser.add_argument("--volumes", type=at_least(1), help="how many (default: 4, with --from all)")
    parser.add_argument(
        "--size", type=at_least(SMALLEST), help="voxels a side of made-up volumes (default: 128)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="default: 0")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=" ".join(KINDS)
    )
    parser.add_argument(
        "--healthy-fraction", type=share, default=0.5, help="share left healthy (default: 0.5)"
    )
    args = parser.parse_args(argv)
    if args.source is None and (args.names or args.names_file):
        parser.error("--names and --names-file choose from the folder given with --from")
    if args.source is not None and args.size is not None:
        parser.error("--size is for made-up volumes; with --from volumes keep their own grid")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        names = args.names.split(",") if args.names else None
        if args.names_file:
            names = args.names_file.read_text().split()
            if not names:
                raise ValueError(f"{args.names_file}: expected names of volumes, found none")
        records = make_toy(
            args.region,
            args.out,
            args.volumes,
            args.size,
            args.seed,
            args.source,
            args.kinds,
            args.healthy_fraction,
            names,
        )
    except (ValueError, OSError) as error:
        print(f"make_toy: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    origins = "volumes of " + args.source.name if args.source else next(iter(records.values()))["origin"]
    planted = sum(record["kind"] is not None for record in records.values())
    print(
        f"{len(records)} {args.region} cases ({origins}), {planted} with an anomaly, under {args.out / args.region}"
    )
    return 0
