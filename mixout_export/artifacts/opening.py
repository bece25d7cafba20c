"""The one entrance: find out what a path or an address holds, and open it."""

from pathlib import Path

from mixout_export.artifacts.bundle import Bundle
from mixout_export.artifacts.onnx_model import CPU_PROVIDER, OnnxModel
from mixout_export.artifacts.served_model import ServedModel
from mixout_export.checkpoint.artifact import Artifact, LocalArtifact
from mixout_export.checkpoint.folder import checkpoint_in, is_onnx_folder
from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.served.address import Address
from mixout_export.served.options import ServingOptions
from mixout_export.served.session import open_served


def open_artifact(source: Path | InputFiles, *, provider: str = CPU_PROVIDER) -> LocalArtifact:
    """Open what a path holds.

    Headers and small files are read now, models when they are first asked for.

    Args:
        source: A mixout checkpoint, a Hugging Face folder, an ONNX folder, an `.onnx` file or a
            bundle; or its files, of which some may have been read already.
        provider: onnxruntime's execution provider, for a graph.

    Returns:
        A `MixoutCheckpoint`, a `PlainCheckpoint`, an `OnnxModel` or a `Bundle`.

    Raises:
        CheckpointError: The path holds nothing that can be opened, or a file is malformed.
    """
    files = source if isinstance(source, InputFiles) else InputFiles(source)
    path = files.folder
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; check the path")
    if path.is_file():
        if path.suffix != ".onnx":
            raise CheckpointError(
                f"{path}: is a file, expected a checkpoint folder or an .onnx file"
            )
        files = files.at(path.parent)
    elif files.is_bundle:
        return Bundle(path, files, provider=provider)
    elif not is_onnx_folder(path):
        return checkpoint_in(files)
    _ = files.config  # a damaged configuration is reported now
    return OnnxModel(path, files, provider=provider)


def open_served_model(
    address: Address, options: ServingOptions, *, reference: Artifact
) -> ServedModel:
    """Ask a server for a model.

    Args:
        address: Where it is served.
        options: How to ask.
        reference: What the model should be, whose names are tried where the server names nothing.

    Raises:
        ArgumentError: An option is outside its domain.
        ServerError: The server cannot be reached, has no such model, or says what cannot be read.
    """
    return ServedModel(
        open_served(address, options, inputs=reference.inputs, outputs=reference.outputs)
    )
