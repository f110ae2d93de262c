"""Anomaly detection through latent space restoration with a VQ-VAE and an autoregressive prior, for the MOOD challenge.

After Marimont & Tarroni, "Anomaly detection through latent space restoration using vector-quantized variational
autoencoders", 2020. `load_model` gives a trained model. `Predictor` makes scores of volumes with it.
"""

from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .model import Model
    from .model_file import load_model
    from .predictor import Predictor

__all__ = ["Model", "Predictor", "__version__", "load_model"]


def __getattr__(name: str) -> object:
    """Loads what is asked for, and torch with it. The command line's help waits for neither."""
    if name == "Model":
        from .model import Model

        return Model
    if name == "load_model":
        from .model_file import load_model

        return load_model
    # It reads NIfTI. Training must run where nibabel is not installed.
    if name == "Predictor":
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
