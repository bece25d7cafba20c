"""A client for inference servers that speak the Open Inference Protocol, version 2."""
