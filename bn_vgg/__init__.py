"""Batch-normalization ablations on an 8-layer VGG."""

__version__ = "0.1.0"
