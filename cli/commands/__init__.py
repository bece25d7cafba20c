"""One module a command; each imports what it runs inside its callback only."""
