"""Folders on disk: reading, writing, and the manifest of a mixout checkpoint."""

from mixout_export.checkpoint.companions import copy_companions
from mixout_export.checkpoint.folder import Folder, open_folder, require_weights
from mixout_export.checkpoint.output import output_folder

__all__ = ["Folder", "copy_companions", "open_folder", "output_folder", "require_weights"]
