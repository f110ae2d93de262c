"""Write a model's networks as ONNX files: encoder, decoder, prior (the NLL of all codes in one pass) and detector.

Their inputs' shapes are told by 'mood_submission/onnx_export.py' and by each file's metadata; the number of slices is free, and so is the size of
the box that the detector reads.
"""

import argparse
import logging
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ...about import ModelError
from ...cli.output import say, tell
from ...model_file import load_model
from ...runtime.names import in_one_line
from ..onnx_export import export_onnx

NEEDED = ("onnx", "onnxscript")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="mood-submission export-onnx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="model file, or a region's shipped one: brain, abdom")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="where to")
    args = parser.parse_args(argv)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        say(
            f"mood-submission export-onnx: expected the package {missing[0]}, found none; pip install 'mood-submission[onnx]'"
        )
        return 2
    warnings.simplefilter("ignore")  # of the exporter, about itself
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        for path in export_onnx(load_model(args.model, "cpu"), args.out):
            tell(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    except (ModelError, OSError) as error:
        say(f"mood-submission export-onnx: {in_one_line(error)}")
        return 1
    return 0
