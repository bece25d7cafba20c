"""Where a folder comes from: hashes of its files, and the chain of steps that led to it."""
