"""Folders as inference servers and other runtimes expect them."""
