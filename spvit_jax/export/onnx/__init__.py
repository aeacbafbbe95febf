"""ONNX files, emitted from a model's own layers: an operator for each thing that it does."""

from spvit_jax.export.onnx.file import LIMIT, OPSETS, onnx_model, save_onnx

__all__ = ["LIMIT", "OPSETS", "onnx_model", "save_onnx"]
