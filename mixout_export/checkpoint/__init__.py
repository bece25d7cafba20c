"""Folders on disk: reading, writing, and the mixout metadata of a mixout checkpoint."""

from mixout_export.checkpoint.artifact import Artifact, open_artifact, require_weights
from mixout_export.checkpoint.output import output_folder
from mixout_export.checkpoint.sidecar_files import copy_sidecar_files

__all__ = ["Artifact", "copy_sidecar_files", "open_artifact", "output_folder", "require_weights"]
