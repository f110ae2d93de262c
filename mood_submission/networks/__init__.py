"""The networks: VQ-VAE, prior (PixelSNAIL), VAE and detectors."""
