"""The self-test: put known faults into copies of a candidate, and see which checks catch them."""
