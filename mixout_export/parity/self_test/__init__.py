"""Known faults in copies of a candidate: what catches them, and what does not."""
