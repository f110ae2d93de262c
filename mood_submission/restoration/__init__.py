"""Restoration: unlikely codes are redrawn from the prior."""
