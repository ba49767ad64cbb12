"""Models that a federation can train, at any width; one file each.

A model is a file with `spec(options)`, which needs NumPy only, and `module(options, ratio)`, which
builds the torch module whose state dict has the spec's names and shapes.
"""

from __future__ import annotations

from penstock.federated.models.registry import ModelOptions, build_module, model_names, model_spec

__all__ = ["ModelOptions", "build_module", "model_names", "model_spec"]
