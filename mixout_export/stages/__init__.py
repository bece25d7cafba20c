"""One module a command: from paths to a path, with a result that says what was done."""
