"""Models that a running server holds, asked over the Open Inference Protocol, version 2."""
