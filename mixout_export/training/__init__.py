"""Finetuning: reading data, batches, the loop, and what it leaves behind."""
