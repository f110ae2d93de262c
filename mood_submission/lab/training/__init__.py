"""Training of the two networks on a folder of healthy volumes: cache -> augment -> VQ-VAE -> prior -> export."""
