"""Lay out ONNX folders as inference servers and other runtimes expect them."""
