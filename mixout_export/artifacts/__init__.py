"""Open everything that commands read: `open_artifact` returns one class for each kind."""
