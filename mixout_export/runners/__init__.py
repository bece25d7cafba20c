"""Run a model on a batch: in PyTorch, in onnxruntime, with a key/value cache or without."""
