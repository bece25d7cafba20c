"""Export a checkpoint to an ONNX folder, and refuse to write one that computes something else."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixout_export.checkpoint import copy_companions, output_folder
from mixout_export.checkpoint.folder import write_json
from mixout_export.checkpoint.layout import LAYOUT
from mixout_export.checkpoint.tokenizer_file import normalize_tokenizer
from mixout_export.errors import ExportError, ParityError
from mixout_export.export.document import Provenance, stamp_graph, write_graph
from mixout_export.export.generation import export_cached_graph
from mixout_export.export.graph import check_opset, export_graph
from mixout_export.parity.result import ParityResult
from mixout_export.parity.subject import TorchSubject, onnx_subject, torch_subject
from mixout_export.parity.verdict import compare_subjects, make_battery

logger = logging.getLogger(__name__)

#: Vocabulary ids that a fresh graph is run on, the first and last quarter at both ends of the
#: vocabulary. The audit finds the whole table in the graph by its hash; `verify` runs them all.
_VOCABULARY_SAMPLE = 8192


@dataclass(frozen=True)
class OnnxResult:
    """What was exported.

    Attributes:
        path: The ONNX folder.
        graph: The graph in it.
        bytes: Size of all graphs, external data included.
        cached_graph: The graph with a key/value cache; None if there is none.
        nodes: Number of nodes.
        opset: ONNX operator set version.
        parity: The comparison with PyTorch; None if it was not asked for.
    """

    path: Path
    graph: Path
    bytes: int
    nodes: int
    opset: int
    parity: ParityResult | None
    cached_graph: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            **vars(self),
            "path": str(self.path),
            "graph": str(self.graph),
            "cached_graph": None if self.cached_graph is None else str(self.cached_graph),
            "parity": None if self.parity is None else self.parity.to_dict(),
        }


def _provenance(source: TorchSubject) -> Provenance:
    return Provenance(
        task=source.task or "",
        labels=source.labels or (),
        source_sha256=source.folder.weights_sha256(),
        interface=source.interface.to_dict(),
    )


def _config(source: TorchSubject) -> dict[str, Any]:
    """Return the plain model's configuration, with the padding id that the graph has built in."""
    config = source.folder.collapsed_config()
    if config.get("pad_token_id") is None and source.interface.pad_token_id is not None:
        config["pad_token_id"] = source.interface.pad_token_id
    return config


def _write_cached(
    source: TorchSubject, folder: Path, *, opset: int, cache: bool
) -> tuple[Path, ...]:
    """Write a causal language model's graph with a cache, where it has a cache of the usual kind.

    Returns:
        The files written; none for another task, or without such a cache, which a warning says.
    """
    if not cache or source.task != "causal-lm":
        return ()
    try:
        graph = export_cached_graph(source.model, source.interface, opset=opset)
    except ExportError as error:
        logger.warning("%s; only the graph without a cache was written", error)
        return ()
    stamp_graph(graph, _provenance(source))
    return write_graph(graph, folder, name=LAYOUT.onnx_cached)


def _verify(source: TorchSubject, partial: Path, out: Path) -> ParityResult:
    battery = make_battery(source, source.interface, vocabulary_budget=_VOCABULARY_SAMPLE)
    compared = compare_subjects(source, onnx_subject(partial), battery=battery)
    parity = replace(compared, candidate=str(out))
    if not parity.holds:
        raise ParityError(
            f"{source.path}: the exported graph is not the same model, {parity.reasons()[0]}; "
            "nothing was written"
        )
    return parity


def export_onnx(
    source: Path,
    out: Path,
    *,
    opset: int = 20,
    cache: bool = True,
    verify: bool = True,
    overwrite: bool = False,
) -> OnnxResult:
    """Export a checkpoint to an ONNX folder: graph, configuration, tokenizer.

    Args:
        source: A collapsed or plain Hugging Face folder, or a mixout checkpoint.
        out: The ONNX folder, which appears complete or not at all.
        opset: ONNX operator set version, 18 to 23.
        cache: Of a causal language model, also write a graph with a key/value cache.
        verify: Compare the graph with PyTorch before it appears.
        overwrite: Replace what is at `out`.

    Raises:
        ArgumentError: The opset is not supported, or `out` is part of `source`.
        CheckpointError: The source cannot be loaded.
        ExportError: The model cannot be exported.
        OutputError: `out` cannot be written.
        ParityError: The graph is not the same model; nothing is at `out`.
    """
    check_opset(opset)
    with output_folder(out, [source], overwrite=overwrite) as folder:
        subject = torch_subject(source)
        subject.folder.check_anchors()
        graph = export_graph(subject.model, subject.interface, opset=opset)
        stamp_graph(graph, _provenance(subject))
        files = write_graph(graph, folder.partial)
        files += _write_cached(subject, folder.partial, opset=opset, cache=cache)
        write_json(folder.partial / LAYOUT.config, _config(subject))
        copy_companions(source, folder.partial)
        normalize_tokenizer(folder.partial, subject.interface.sequence_limit)
        parity = _verify(subject, folder.partial, out) if verify else None
        size = sum(file.stat().st_size for file in files)
    cached = out / LAYOUT.onnx_cached
    return OnnxResult(
        path=out,
        graph=out / LAYOUT.onnx,
        bytes=size,
        nodes=len(graph.modules_by_node),
        opset=opset,
        parity=parity,
        cached_graph=cached if cached.is_file() else None,
    )
