"""What a model says about each row of a file, and how well: one module for each kind of answer."""
