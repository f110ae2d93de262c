"""Training on a folder of healthy volumes: cache -> augment -> VQ-VAE -> prior -> detector."""
