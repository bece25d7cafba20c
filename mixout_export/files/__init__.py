"""Files on disk: tensors as bytes, JSON, hashes, output that appears complete or not at all."""
