"""Folders on disk: reading, writing, and the manifest of a mixout checkpoint."""
