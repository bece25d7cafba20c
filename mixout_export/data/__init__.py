"""Tables of examples: reading, columns, labels, encoding and metrics."""
