"""Anomaly detection through latent space restoration with a VQ-VAE and an autoregressive prior, for the MOOD challenge.

After Marimont & Tarroni, "Anomaly detection through latent space restoration using vector-quantized variational
autoencoders", 2020. `load_model` gives a trained model; `Predictor` takes folders of NIfTI volumes to scores.
"""

from .model import Model, load_model

__all__ = ["Model", "load_model"]
__version__ = "0.1.0"
