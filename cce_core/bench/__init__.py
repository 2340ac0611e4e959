"""Measure the loss and its peers on the same tensors: python -m cce_core.bench."""
