"""Restoration: unlikely codes are replaced by draws from the prior."""
