"""Everything that commands open, one class for each kind, and `open_artifact` that opens it."""
