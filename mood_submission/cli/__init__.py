"""The command line: `mood-submission COMMAND ...`, the same as `python -m mood_submission COMMAND ...`."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from ..version import __version__

# The commands and what they do, in the order in which a newcomer meets them. A command is the module of its name, in this
# room or in `lab/cli`.
COMMANDS = {
    "predict": "score every volume of a folder",
    "make-toy": "plant anomalies in healthy volumes, and keep the labels",
    "info": "tell what a volume or a model file is",
    "report": "make a page to look at: ranking, pictures, findings, a viewer",
    "view": "serve such a page on this machine alone",
    "evaluate": "judge predictions as the challenge does",
    "show": "make a picture of volumes beside their scores",
    "train": "train the networks on healthy volumes",
    "grand-challenge": "run as an algorithm of grand-challenge.org",
    "export": "make a model file of a training run",
    "export-onnx": "write a model's networks as ONNX files",
    "quantise": "make a model ready for ONNX Runtime, in int8 too",
    "add-detector": "put a trained detector into a model file",
    "add-level": "teach a model to leave out what it has not seen of a body",
    "calibrate": "measure what is rare among healthy voxels",
    "compare": "compare scoring methods on held-out volumes",
    "benchmark": "measure how long each step takes",
    "import-reference": "make a model file of the published checkpoints",
}


PACKAGE = __name__.rpartition(".")[0]
WORKSHOP = f"{PACKAGE}.lab"
IN_PRODUCT = ("predict", "info", "report", "view", "grand-challenge")


def module_of(command: str) -> str:
    """The module of a command. The workshop's are named here as text alone: the product runs where `lab/` is deleted."""
    room = f"{PACKAGE}.cli" if command in IN_PRODUCT else f"{WORKSHOP}.cli"
    return f"{room}.{command.replace('-', '_')}"


def workshop_is_there() -> bool:
    """Whether the workshop's commands can be run: whether `lab/` is there, and is no empty folder."""
    spec = find_spec(WORKSHOP)
    return spec is not None and spec.origin is not None


def commands_here() -> dict[str, str]:
    """Those of COMMANDS that can be run here."""
    if workshop_is_there():
        return COMMANDS
    return {name: what for name, what in COMMANDS.items() if name in IN_PRODUCT}


def help_text() -> str:
    """What `mood-submission --help` prints."""
    here = commands_here()
    width = max(map(len, here))
    lines = [f"  {name:{width}}  {what}" for name, what in here.items()]
    return "\n".join(
        [
            "usage: mood-submission COMMAND ...",
            "",
            "Find what does not belong in a brain MRI or an abdominal CT, having learnt from healthy ones only.",
            "",
            *lines,
            "",
            "mood-submission COMMAND --help tells a command's options; --version the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 2 for wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Whoever started this may have closed it.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name may hold characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    # The reader has seen enough, as in `mood-submission evaluate ... | head -1`.
    except BrokenPipeError:
        # Otherwise Python complains when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        if words[0] not in commands_here():
            missing = f"expected the workshop ({WORKSHOP.replace('.', '/')}), which has this command, found none"
            print(f"mood-submission {words[0]}: {missing}", file=sys.stderr)
            return 1
        # A command's module is imported only when it is asked for.
        import_module(".output", __name__).quiet()
        return import_module(module_of(words[0])).main(words[1:])
    if words and words[0] in ("-h", "--help"):
        print(help_text())
        return 0
    if words and words[0] == "--version":
        print(__version__)
        return 0
    found = f"found {words[0]!r}" if words else "found none"
    print(f"mood-submission: expected a command ({', '.join(commands_here())}), {found}", file=sys.stderr)
    return 2
