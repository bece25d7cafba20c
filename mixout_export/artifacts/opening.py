"""The one entrance: find out what a path or an address holds, and open it."""

from pathlib import Path
from typing import overload

from mixout_export.artifacts.onnx_model import Bundle, OnnxModel
from mixout_export.artifacts.served_model import ServedModel
from mixout_export.checkpoint.artifact import Artifact, LocalArtifact
from mixout_export.checkpoint.folder import checkpoint_in, is_onnx_folder
from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.runners import CPU_PROVIDER
from mixout_export.served.address import Address
from mixout_export.served.options import ServingOptions
from mixout_export.served.session import open_served


@overload
def open_artifact(source: Path | InputFiles, *, provider: str = CPU_PROVIDER) -> LocalArtifact: ...


@overload
def open_artifact(
    source: Address, *, serving: ServingOptions | None = None, reference: Artifact
) -> ServedModel: ...


def open_artifact(
    source: Path | InputFiles | Address,
    *,
    provider: str = CPU_PROVIDER,
    serving: ServingOptions | None = None,
    reference: Artifact | None = None,
) -> Artifact:
    """Open what a path or an address holds.

    Headers and small files are read now, models when they are first asked for. A server is asked
    now.

    Args:
        source: The path of a mixout checkpoint, a Hugging Face folder, an ONNX folder, an `.onnx`
            file or a bundle; its files, of which some may have been read already; or the address
            of a served model.
        provider: onnxruntime's execution provider, for a graph.
        serving: How to ask a server; None asks as `ServingOptions()` does.
        reference: What a served model should be. Its names are tried if the server names nothing.

    Returns:
        A `MixoutCheckpoint`, a `PlainCheckpoint`, an `OnnxModel`, a `Bundle` or a `ServedModel`.

    Raises:
        ArgumentError: An option for the server is outside its domain.
        CheckpointError: The path holds nothing that can be opened, or a file is malformed.
        ServerError: The server cannot be reached, has no such model, or says what cannot be read.
    """
    if isinstance(source, Address):
        inputs, outputs = ((), ()) if reference is None else (reference.inputs, reference.outputs)
        options = serving or ServingOptions()
        return ServedModel(open_served(source, options, inputs=inputs, outputs=outputs))
    files = source if isinstance(source, InputFiles) else InputFiles(source)
    path = files.folder
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; check the path")
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
