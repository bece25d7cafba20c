"""`study`: compare arms on tasks and seeds."""
