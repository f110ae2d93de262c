"""Write a model's networks as ONNX files: encoder, decoder, prior (the NLL of all codes in one pass) and detector.

mood_submission/lab/onnx_export.py and each file's metadata say which shapes the inputs have. The number of slices is free,
and so is the size of the box that the detector reads.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...cli.command import run_command
from ...model_file import load_model
from ...runtime.options import option
from ..onnx_export import export_onnx, prepare_exporter


@dataclass(frozen=True, kw_only=True)
class OnnxExportOptions:
    """Options of `export-onnx`."""

    model: str = option("model file, or a region's shipped one: brain, abdom", "model", metavar="MODEL")
    out: Path = option("where to", "-o", "--out", metavar="FOLDER")


def export(options: OnnxExportOptions) -> list[str]:
    """Write the files. Returns a line on each. Raises ValueError where there is no model, or no package that writes them."""
    prepare_exporter()
    files = export_onnx(load_model(options.model, "cpu"), options.out)
    return [f"{file}: {file.stat().st_size / 1e6:.1f} MB" for file in files]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission export-onnx", description=__doc__)
    return run_command(parser, OnnxExportOptions, export, argv)
