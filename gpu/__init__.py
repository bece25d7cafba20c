"""Prove the CUDA path on a machine with a GPU, with one command: `python -m gpu`."""
