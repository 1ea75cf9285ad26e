"""Vision towers as ONNX graphs."""
