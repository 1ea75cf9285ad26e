"""Decoder graphs as ONNX, node by node, and the one file of their weights."""
