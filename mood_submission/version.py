"""The version, which every room may tell: this module imports nothing."""

__version__ = "0.2.0"
