"""Checkpoints: what a folder holds, and models that are loaded from it and saved to it."""
