"""Export a plain model to an ONNX graph: capture, convert, record its origin, write."""
