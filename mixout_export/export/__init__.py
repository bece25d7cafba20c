"""A plain model becomes an ONNX graph: capture, clean, stamp, write."""
