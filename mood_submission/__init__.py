"""Anomaly detection through latent space restoration with a VQ-VAE and an autoregressive prior, for the MOOD challenge.

After Marimont & Tarroni, "Anomaly detection through latent space restoration using vector-quantized variational
autoencoders", 2020. `load_model` gives a trained model; `Predictor` takes folders of NIfTI volumes to scores.
"""

from .model import Model
from .model_file import load_model
from .version import __version__

__all__ = ["Model", "Predictor", "__version__", "load_model"]


def __getattr__(name: str) -> object:
    if name == "Predictor":  # only when asked for: it reads NIfTI, and training must run where nibabel is not installed
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
