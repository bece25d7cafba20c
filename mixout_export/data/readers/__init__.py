"""What each task reads from a table: one module for each task."""
