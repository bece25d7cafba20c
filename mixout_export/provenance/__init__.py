"""Record and check where a folder comes from: file hashes, the chain of steps, signatures."""
