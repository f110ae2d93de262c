"""Keeps packages from telling others what is computed here."""

import os

# ONNX Runtime reads it when it is loaded. Without it, from version 1.29 on, it writes a number of this machine into the home folder,
# and sends to its makers what models are computed.
VARIABLE = "ORT_DISABLE_TELEMETRY"


def keep_to_ourselves() -> None:
    """Switch off what ONNX Runtime would write and send of itself. Call this before the package is loaded.

    Whoever has set the variable has decided.
    """
    os.environ.setdefault(VARIABLE, "1")
