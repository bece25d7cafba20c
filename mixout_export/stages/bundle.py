"""`bundle`: lay out an ONNX folder as an inference server or another runtime expects it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mixout_export.bundling.example import make_example
from mixout_export.bundling.guide import write_guide
from mixout_export.bundling.libraries import plan_optimum, plan_transformers_js
from mixout_export.bundling.plan import BundleOptions, Model, Plan
from mixout_export.bundling.servers import plan_mlserver, plan_openvino, plan_triton
from mixout_export.bundling.source import OnnxFolder, open_onnx_folder
from mixout_export.bundling.tokenizer_check import check_tokenizer
from mixout_export.card.document import Card, read_card, write_card
from mixout_export.card.header import bundled_header
from mixout_export.checkpoint.image_processor import write_image_processor
from mixout_export.checkpoint.tokenizer_file import (
    name_class_for_all,
    normalize_tokenizer,
    write_tokenizer_json,
)
from mixout_export.errors import ArgumentError, CheckpointError, OutputError, ParityError
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import OutputFolder, check_destination, output_folder
from mixout_export.files.streams import file_digest
from mixout_export.files.tensors import joint_digest
from mixout_export.provenance.links import Link
from mixout_export.provenance.manifest import write_manifest
from mixout_export.provenance.ml_bom import check_bom_library, write_bom
from mixout_export.provenance.signature import check_signing_key, sign_folder

logger = logging.getLogger(__name__)

_PLANNERS: Mapping[str, Callable[[Sequence[OnnxFolder], BundleOptions], Plan]] = {
    "triton": plan_triton,
    "mlserver": plan_mlserver,
    "openvino": plan_openvino,
    "transformers-js": plan_transformers_js,
    "optimum": plan_optimum,
}


@dataclass(frozen=True)
class BundleResult:
    """The result of `bundle`.

    Attributes:
        out: The bundle.
        server: The target server or runtime.
        models: Name, precision, path in the bundle and SHA-256 of each graph.
        bytes: Size of all files.
        tokenizer_texts: Number of texts that the tokenizer was tested on; 0 without a tokenizer.
        tokenizer_note: What the bundle's tokenizer is missing, as a clause; "" if nothing.
        signed: Whether the bundle is signed.
    """

    out: Path
    server: str
    models: tuple[dict[str, str], ...]
    bytes: int
    tokenizer_texts: int
    tokenizer_note: str
    signed: bool


def _check_manifest(folder: OnnxFolder) -> None:
    """Refuse files that were changed or added after `onnx` verified the folder.

    Raises:
        ParityError: The folder does not match its manifest.
    """
    found = folder.model.manifest_check
    if found.problems:
        raise ParityError(f"{found.problems[0]}; the change is not verified, so export it again")
    if found.manifest is None:
        return
    shipped = {file.name for graph in folder.graphs for file in graph.files}
    shipped |= {file.name for file in folder.companions}
    added = sorted(shipped & set(found.unlisted))
    if added:
        raise ParityError(
            f"{folder.path / added[0]}: was added after onnx wrote the folder, so it is not "
            "verified; move it elsewhere"
        )


def _open(sources: Sequence[Path]) -> list[OnnxFolder]:
    """Open the folders of one model in several precisions.

    Raises:
        ArgumentError: The folders are of several models, or two have the same precision.
    """
    folders = [open_onnx_folder(path) for path in sources]
    first, precisions = folders[0], set()
    for folder in folders:
        _check_manifest(folder)
        if folder.precision in precisions:
            raise ArgumentError(
                f"{folder.path}: is {folder.precision}, like another folder; give each precision "
                "once"
            )
        precisions.add(folder.precision)
        if len(folders) > 1 and not folder.source_sha256:
            raise ArgumentError(
                f"{folder.path}: does not record which weights it was exported from, so it cannot "
                "be bundled with another precision; export it again, or bundle it alone"
            )
        if folder.source_sha256 != first.source_sha256 or folder.labels != first.labels:
            raise ArgumentError(
                f"{folder.path}: was exported from other weights than {first.path}; bundle "
                "precisions of the same checkpoint"
            )
    return folders


def _check_copies(models: Sequence[Model], folder: Path) -> None:
    for model in models:
        for path, digest in model.digests.items():
            if file_digest(folder / path) != digest:
                raise OutputError(
                    f"{folder / path}: differs from the file in {model.graph.path.parent}, which "
                    "changed in the meantime; run bundle again"
                )


def _settle_tokenizers(plan: Plan, folder: Path) -> tuple[int, str]:
    """Complete and normalize each tokenizer, and check that it gives the tokens of the original.

    Returns:
        The number of texts that were compared, and why it is 0 or which clients are left out.

    Raises:
        CheckpointError: The runtime needs a `tokenizer.json`, and there can be none.
        ParityError: A tokenizer gives other tokens than the original.
    """
    texts, note = 0, ""
    for directory, source in plan.tokenizers.items():
        where, original = folder / directory, source.model.tokenizer
        note = _missing(source, original)
        if original is not None:
            if write_tokenizer_json(where, original):
                note = ""
            normalize_tokenizer(where, source.limit, padding_side=original.padding_side)
            name_class_for_all(where)
            texts = check_tokenizer(where, original)
        if note and plan.needs_tokenizer_json:
            raise CheckpointError(
                f"{source.path}: {note}; bundle it for another --server, or put a tokenizer.json "
                "with the same tokens into the checkpoint and run onnx again"
            )
    return texts, note


def _complete_processors(plan: Plan, folder: Path) -> None:
    """Write the files of image processors with all settings."""
    for directory, source in plan.tokenizers.items():
        try:
            processor = source.model.image_processor if source.takes_images else None
        except CheckpointError as error:  # for example if it needs another package
            logger.warning("%s; the file was copied as it is", error)
            continue
        if processor is not None:
            write_image_processor(folder / directory, processor)


def _missing(source: OnnxFolder, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return what it means that the folder has no `tokenizer.json`."""
    if not source.takes_text:
        return ""
    if tokenizer is None:
        return "has no tokenizer, so clients need another source of token ids"
    return (
        f"the tokenizer {type(tokenizer).__name__} is written in Python and has no "
        "tokenizer.json, so only Python clients can use it"
    )


def _input_sha256(folder: OnnxFolder) -> str:
    return joint_digest(
        {file.name: digest for graph in folder.graphs for file, digest in graph.digests.items()}
    )


def bundle_onnx(
    source: Path,
    out: Path,
    options: BundleOptions,
    *,
    also: Sequence[Path] = (),
    overwrite: bool = False,
    bom: bool = False,
    sign: Path | None = None,
) -> BundleResult:
    """Write a folder that a server or runtime can load directly.

    Args:
        source: An ONNX folder.
        out: The bundle, which appears complete or not at all.
        options: The server, names, version and batch size.
        also: ONNX folders of the same checkpoint in other precisions.
        overwrite: Whether a non-empty `out` may be replaced.
        bom: Whether to write a bill of materials too.
        sign: A private key to sign the bundle with; None leaves it unsigned.

    Raises:
        ArgumentError: An option or the key is invalid, or the folders are of different models.
        CheckpointError: A path is not an ONNX folder, its graph cannot be loaded, or the runtime
            needs a `tokenizer.json` and there can be none.
        OutputError: `out` cannot be written.
        ParityError: A folder does not match its manifest, or its `tokenizer.json` alone gives other
            tokens than the original.
    """
    if sign is not None:
        check_signing_key(sign)
    if bom:
        check_bom_library()
    sources = [source, *also]
    check_destination(out, sources, overwrite=overwrite)
    folders = _open(sources)
    plan = _PLANNERS[options.server](folders, options)
    with output_folder(out, sources, overwrite=overwrite) as target:
        plan.write(target.partial)
        _check_copies(plan.models, target.partial)
        texts, note = _settle_tokenizers(plan, target.partial)
        _complete_processors(plan, target.partial)
        example = make_example(plan.models[0].folder, plan.models[0].graph)
        header = bundled_header(read_card(source / LAYOUT.card).header, options.server)
        write_card(Card(header, write_guide(plan, options, example)), target.partial / LAYOUT.card)
        _record(target, plan, options, bom=bom)
        if sign is not None:
            sign_folder(target.partial, sign)
    return BundleResult(
        out=out,
        server=options.server,
        models=tuple({"name": m.name, "path": str(m.path), **m.identity} for m in plan.models),
        bytes=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        tokenizer_texts=texts,
        tokenizer_note=note,
        signed=sign is not None,
    )


def _link_of(folder: OnnxFolder) -> dict[str, Any]:
    """Return the last step of another precision. The chain records those of the first."""
    manifest = folder.model.manifest_check.manifest
    if manifest is None:
        return Link("source", _input_sha256(folder), folder.path.resolve().name).to_dict()
    return manifest.link.to_dict()


def _license(folder: OnnxFolder) -> str:
    """Return the license in the folder's card; "" if there is none."""
    header = read_card(folder.path / LAYOUT.card).header
    license = header.get("license")
    if license == "other":
        license = header.get("license_name", license)
    if isinstance(license, list):
        return ", ".join(map(str, license))
    return "" if license is None else str(license)


def _record(target: OutputFolder, plan: Plan, options: BundleOptions, *, bom: bool) -> None:
    """Write the manifest, once everything else is in the folder."""
    first = plan.models[0].folder
    digests = {str(p): digest for model in plan.models for p, digest in model.digests.items()}
    recorded: dict[str, Any] = {
        "server": options.server,
        "name": options.name,
        "model_version": options.version,
        "max_batch_size": options.max_batch_size,
        "graphs": [str(model.path) for model in plan.models],
    }
    others = {model.folder.path: model.folder for model in plan.models[1:]}
    others.pop(first.path, None)
    if others:
        recorded["also"] = [_link_of(folder) for folder in others.values()]
    if bom:
        manifest = first.model.manifest_check.manifest
        write_bom(
            target.partial,
            name=options.name,
            graphs={str(model.path): model.graph.sha256 for model in plan.models},
            chain=() if manifest is None else manifest.whole_chain,
            task=first.task,
            license=_license(first),
        )
    write_manifest(
        target.partial,
        step="bundle",
        source=first.model.files,
        input_sha256=_input_sha256(first),
        weights=list(digests),
        options=recorded,
        known=digests,
    )
