"""Run a model on a batch, in PyTorch or in onnxruntime, with or without a key/value cache."""

#: onnxruntime's execution provider unless the user names another.
CPU_PROVIDER = "CPUExecutionProvider"
