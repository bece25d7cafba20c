"""Client of inference servers, over the Open Inference Protocol, version 2."""
