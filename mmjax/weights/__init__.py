"""Weights in and out: checkpoints of other libraries."""

from mmjax.weights.loading import FORMATS, Loaded, export, load

__all__ = ["FORMATS", "Loaded", "export", "load"]
