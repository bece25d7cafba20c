"""Check mixout on a GPU with one command: `python -m gpu`."""
