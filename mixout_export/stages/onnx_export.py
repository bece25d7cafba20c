"""`onnx`: export a checkpoint to an ONNX folder, and check that it computes the same."""

import logging
import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mixout_export.artifacts.opening import open_artifact
from mixout_export.card.document import read_card, write_card
from mixout_export.card.steps import exported_card
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.checkpoint.padding import padding_side
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.tokenizer_file import normalize_tokenizer, set_padding_side
from mixout_export.data.columns import ColumnNames
from mixout_export.data.lengths import cut_sentence
from mixout_export.data.separated import FieldFormat
from mixout_export.errors import ArgumentError, ExportError, ParityError
from mixout_export.export.document import Declared, finalize_graph, write_graph
from mixout_export.export.generation import export_cached_graph
from mixout_export.export.graph import ExportedGraph, export_graph
from mixout_export.export.opset import check_opset
from mixout_export.export.precision import Conversion, convert_graph
from mixout_export.files.graph_metadata import Provenance
from mixout_export.files.json_files import write_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import OutputFolder, output_folder
from mixout_export.files.sidecar_files import copy_sidecar_files
from mixout_export.files.streams import data_digest
from mixout_export.parity.battery import Battery, build_battery
from mixout_export.parity.comparison import check_agreement, compare_artifacts
from mixout_export.parity.decisions import DATA_BATCH
from mixout_export.parity.padding import PaddingCheck, check_padding
from mixout_export.parity.result import ParityResult
from mixout_export.provenance.links import DataFile
from mixout_export.provenance.manifest import write_manifest
from mixout_export.stages.export_facts import export_facts
from mixout_export.stages.verify_data import data_batches, read_data

logger = logging.getLogger(__name__)

#: Number of vocabulary ids that a new graph is run on, a quarter of them at each end of the
#: vocabulary. The audit finds the whole table in the graph by its hash, and `verify` runs all ids.
_VOCABULARY_SAMPLE = 8192


#: Rows that fix the range of activations for int8, unless the user gives another number.
CALIBRATION_ROWS = 256


@dataclass(frozen=True)
class ExportData:
    """The user's tables in an export.

    Attributes:
        data: Table to run in addition to the battery; None runs none.
        max_examples: Most rows of `data`; None runs all.
        calibration: Table on which activations are measured. int8 takes their range from it
            (static quantization); None quantizes dynamically. For fp16 it shows, in addition to
            the test inputs, which values are too large.
        calibration_examples: Most rows of `calibration`; None uses `CALIBRATION_ROWS` for int8,
            and all for fp16.
        max_length: Longest sequence in tokens, for both tables; None takes that of the training.
        columns: Columns that the user named, for both tables.
        fields: How the fields of csv and tsv files are separated and quoted.
    """

    data: Path | None = None
    max_examples: int | None = None
    calibration: Path | None = None
    calibration_examples: int | None = None
    max_length: int | None = None
    columns: ColumnNames = field(default_factory=ColumnNames)
    fields: FieldFormat = field(default_factory=FieldFormat)

    def calibration_rows(self, precision: str) -> int | None:
        """Return the most rows of `calibration` to use; None uses all."""
        usual = CALIBRATION_ROWS if precision == "int8" else None
        return usual if self.calibration_examples is None else self.calibration_examples

    def check(self, conversion: Conversion, *, verify: bool) -> None:
        """Refuse options that would have no effect.

        Raises:
            ArgumentError: A number is outside its domain, or an option is not used.
        """
        if self.calibration is not None and conversion.precision == "fp32":
            raise ArgumentError(
                "calibration-data: is for int8 and fp16; give --precision int8 or fp16"
            )
        if self.data is not None and not verify:
            raise ArgumentError("data: is for the comparison with PyTorch; leave --no-verify out")
        if self.calibration is None and self.calibration_examples is not None:
            raise ArgumentError(
                "calibration-examples: limits the rows of a calibration file; give "
                "--calibration-data"
            )
        if self.data is None and self.max_examples is not None:
            raise ArgumentError("max-examples: limits the rows of a data file; give --data")
        if self.data is None and self.calibration is None and self.max_length is not None:
            raise ArgumentError(
                "max-length: cuts the texts of a data file; give --data or --calibration-data"
            )
        for name, value in (
            ("max-examples", self.max_examples),
            ("calibration-examples", self.calibration_examples),
        ):
            if value is not None and value < 1:
                raise ArgumentError(f"{name}: got {value}, expected at least 1")


@dataclass(frozen=True)
class OnnxResult:
    """The result of an export.

    Attributes:
        path: The ONNX folder.
        graph: The graph in it.
        bytes: Size of all graphs, external data included.
        cached_graph: The graph with a key/value cache; None if it was not exported.
        nodes: Number of nodes.
        opset: The lowest ONNX operator set that the graphs' operators need.
        oldest_onnxruntime: The oldest onnxruntime that loads the graphs; "" if unknown.
        oldest_triton: The oldest release of Triton that loads them; "" if unknown.
        parity: The comparison with PyTorch; None if it was not requested.
        precision: "fp32", "fp16" or "int8".
        optimized: Whether the graph has the optimizations of onnxruntime.
        padding: Whether results depend on padding and on other rows; None if it was not measured.
            `--no-verify` measures only int8.
        static: Whether int8 was calibrated on data.
    """

    path: Path
    graph: Path
    bytes: int
    nodes: int
    opset: int
    oldest_onnxruntime: str
    oldest_triton: str
    parity: ParityResult | None
    cached_graph: Path | None = None
    precision: str = "fp32"
    optimized: bool = False
    padding: PaddingCheck | None = None
    static: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            **vars(self),
            "path": str(self.path),
            "graph": str(self.graph),
            "cached_graph": None if self.cached_graph is None else str(self.cached_graph),
            "parity": None if self.parity is None else self.parity.to_dict(),
            "padding": None if self.padding is None else self.padding.to_dict(),
        }


def _config(source: PlainCheckpoint) -> dict[str, Any]:
    """Return the configuration of the plain model, with the padding id that the graph uses."""
    config = source.collapsed_config()
    if config.get("pad_token_id") is None and source.interface.pad_token_id is not None:
        config["pad_token_id"] = source.interface.pad_token_id
    return config


def _capture(source: PlainCheckpoint, *, opset: int, cache: bool) -> dict[str, ExportedGraph]:
    """Capture the graphs to write, by the names of their files.

    A causal language model gets a second graph with a key/value cache. If its cache is not of the
    usual kind, there is only one graph, with a warning.
    """
    graphs = {LAYOUT.onnx: export_graph(source.model, source.interface, opset=opset)}
    if cache and source.task is not None and source.task.generates:
        try:
            cached = export_cached_graph(source.model, source.interface, opset=opset)
            graphs[LAYOUT.onnx_cached] = cached
        except ExportError as error:
            logger.warning("%s; only the graph without a cache was written", error)
    return graphs


def _table(
    source: PlainCheckpoint, data: ExportData, path: Path | None, rows: int | None
) -> tuple[Batch, ...]:
    if path is None:
        return ()
    read = read_data(
        path,
        source,
        source,
        source.interface,
        columns=data.columns,
        max_examples=rows,
        max_length=data.max_length,
        fields=data.fields,
    )
    cut = cut_sentence(read.cut)
    if cut is not None:
        logger.warning("%s", cut)
    return data_batches(read)


@dataclass(frozen=True)
class _Written:
    """What was written: bytes of all graphs, nodes of the first, and what they need to run."""

    bytes: int
    nodes: int
    declared: Declared


@dataclass(frozen=True)
class _Export:
    """Everything that an ONNX folder is made from.

    Attributes:
        source: The model.
        graphs: Its captured graphs, by the names of their files.
        battery: The inputs that they are compared on.
        samples: Inputs that show which values are too large for fp16.
        calibration: Inputs for static quantization; None quantizes activations dynamically.
    """

    source: PlainCheckpoint
    graphs: dict[str, ExportedGraph]
    battery: Battery
    samples: list[dict[str, Any]]
    calibration: list[dict[str, Any]] | None

    def write(self, folder: Path, conversion: Conversion) -> _Written:
        """Write the graphs into a folder."""
        size, nodes, declared = 0, [], []
        for name, captured in self.graphs.items():
            graph, made = convert_graph(
                captured,
                conversion,
                samples=self.samples,
                calibration=self.calibration,
            )
            provenance = Provenance(
                task=self.source.task_name or "",
                labels=self.source.labels or (),
                source_sha256=self.source.weights_sha256(),
                interface=self.source.interface.to_dict(),
                trained_max_length=self.source.trained_max_length,
                precision=conversion.precision,
                conversion=made,
            )
            nodes.append(len(graph.model.graph))
            declared.append(finalize_graph(graph, provenance, captured=captured))
            files = write_graph(graph, folder, name=name)
            size += sum(file.stat().st_size for file in files)
        return _Written(size, nodes[0], max(declared, key=lambda needs: needs.opset))

    def measure_padding(self, folder: Path) -> PaddingCheck:
        """Measure how much results of the graph depend on padding, without PyTorch."""
        interface = self.source.interface
        return check_padding(
            open_artifact(folder).runner(interface.inputs),
            interface,
            task=self.source.task_name,
            tolerance=None,
            data=[batch for batch in self.battery.batches if batch.name == DATA_BATCH],
        )

    def verify(self, folder: Path, min_agreement: float | None) -> ParityResult:
        """Compare the graphs in a folder with PyTorch."""
        return compare_artifacts(
            self.source,
            open_artifact(folder),
            battery=self.battery,
            min_agreement=min_agreement,
        )


def _advice(parity: ParityResult, conversion: Conversion, data: ExportData) -> str:
    """Return what to try instead of a precision that does not hold, as the end of a sentence."""
    if conversion.precision == "fp32" or parity.weights is None or not parity.weights.holds:
        return ""
    options = [] if data.calibration else ["--calibration-data FILE"]
    if conversion.precision == "fp16":
        return f". Try {' or '.join([*options, '--precision fp32'])}"
    options.append("--precision fp16")
    generated = () if parity.generation is None else parity.generation.outputs
    shares = [parity.agreement(output) for output in (*parity.outputs, *generated)]
    least = min((share for share in shares if share is not None), default=None)
    wanted = parity.limits.agreement
    if wanted is not None and least is not None and least < wanted:
        options.append(f"accept it with --min-agreement {math.floor(least * 100) / 100:g}")
    return f". Try {', or '.join(options)}"


def _record(
    target: OutputFolder,
    source: PlainCheckpoint,
    conversion: Conversion,
    data: ExportData,
    *,
    opset: int,
    verified: bool,
) -> None:
    """Write the manifest, once everything else is in the folder."""
    tables = [("verify", data.data), ("calibration", data.calibration)]
    write_manifest(
        target.partial,
        step="onnx",
        source=source.files,
        input_sha256=source.weights_sha256(),
        # the graphs, and what lies beside those that are too large for one file
        weights=sorted(path.name for path in target.partial.glob("*.onnx*")),
        options={
            **vars(conversion),
            "max_length": data.max_length,
            "opset": opset,
            "verified": verified,
        },
        data=[DataFile(role, file.name, data_digest(file)) for role, file in tables if file],
    )


def _prepare(source: Path, data: ExportData, precision: str, *, opset: int, cache: bool) -> _Export:
    """Open the source, read the tables, capture the graphs."""
    checkpoint = open_checkpoint(source)
    checkpoint.load()
    checkpoint.check_anchors()
    examples = _table(checkpoint, data, data.data, data.max_examples)
    calibration = _table(checkpoint, data, data.calibration, data.calibration_rows(precision))
    batteries = partial(build_battery, checkpoint.interface, task=checkpoint.task_name)
    battery = batteries(vocabulary_budget=_VOCABULARY_SAMPLE, examples=examples)
    samples: tuple[Batch, ...] = ()
    if precision == "fp16":  # one token can be enough for an overflow, so all are run
        samples = batteries(examples=(*examples, *calibration)).batches
    return _Export(
        source=checkpoint,
        graphs=_capture(checkpoint, opset=opset, cache=cache),
        battery=battery,
        samples=[dict(batch.inputs) for batch in samples],
        calibration=[dict(batch.inputs) for batch in calibration] or None,
    )


def _settle_tokenizer(folder: Path, source: PlainCheckpoint) -> None:
    """Let the tokenizer in a folder pad and cut as the model needs it."""
    tokenizer = source.tokenizer
    if tokenizer is None:
        return
    side = padding_side(tokenizer.padding_side, source.interface)
    if side != tokenizer.padding_side:
        set_padding_side(folder, side)
    normalize_tokenizer(folder, source.interface.sequence_limit, padding_side=side)


def export_onnx(
    source: Path,
    out: Path,
    *,
    opset: int = 20,
    cache: bool = True,
    verify: bool = True,
    overwrite: bool = False,
    conversion: Conversion | None = None,
    data: ExportData | None = None,
    min_agreement: float | None = None,
) -> OnnxResult:
    """Export a checkpoint to an ONNX folder: graph, configuration, tokenizer.

    If parity does not hold for the optimized graph, the graph is written without optimizations,
    with a warning.

    Args:
        source: A collapsed or plain Hugging Face folder, or a mixout checkpoint.
        out: The ONNX folder, which appears complete or not at all.
        opset: Highest ONNX operator set to use, 17 to 23. The graph declares the lowest that its
            operators need.
        cache: For a causal language model, also write a graph with a key/value cache.
        verify: Compare the graph with PyTorch before `out` appears.
        overwrite: Replace an existing `out`.
        conversion: Precision of the graph, and whether it is optimized; None is fp32 as captured.
        data: Tables for calibration and comparison; None uses no tables.
        min_agreement: Smallest share of decisions that agree with PyTorch. None uses the default of
            the precision, which only int8 has.

    Raises:
        ArgumentError: An argument is outside its domain, or `out` is part of `source`.
        CheckpointError: The source cannot be loaded.
        DataError: A table cannot be read or does not fit.
        ExportError: The model cannot be exported.
        OutputError: `out` cannot be written.
        ParityError: The graph is not the same model; nothing is at `out`.
    """
    conversion, data = conversion or Conversion(), data or ExportData()
    check_opset(opset)
    check_agreement(min_agreement)
    if min_agreement is not None and not verify:
        raise ArgumentError(
            "min-agreement: is for the comparison with PyTorch; leave --no-verify out"
        )
    data.check(conversion, verify=verify)
    with output_folder(out, [source], overwrite=overwrite) as folder:
        export = _prepare(source, data, conversion.precision, opset=opset, cache=cache)
        write_json(folder.partial / LAYOUT.config, _config(export.source))
        copy_sidecar_files(source, folder.partial)
        _settle_tokenizer(folder.partial, export.source)
        written = export.write(folder.partial, conversion)
        parity = export.verify(folder.partial, min_agreement) if verify else None
        if parity is not None and not parity.holds and conversion.optimize:
            logger.warning(
                "the optimized graph does not compute the same (%s); it is written unoptimized",
                parity.reasons()[0],
            )
            conversion = replace(conversion, optimize=False)
            written = export.write(folder.partial, conversion)
            parity = export.verify(folder.partial, min_agreement)
        if parity is not None and not parity.holds:
            raise ParityError(
                f"{source}: the exported graph is not the same model, {parity.reasons()[0]}; "
                f"nothing was written{_advice(parity, conversion, data)}"
            )
        padding = None if parity is None else parity.padding
        if parity is None and conversion.precision == "int8":
            padding = export.measure_padding(folder.partial)
        declared = written.declared
        facts = export_facts(export.source, conversion.precision, declared, parity, padding)
        card = exported_card(facts, read_card(source / LAYOUT.card))
        write_card(card, folder.partial / LAYOUT.card)
        _record(folder, export.source, conversion, data, opset=declared.opset, verified=verify)
    cached = out / LAYOUT.onnx_cached
    return OnnxResult(
        path=out,
        graph=out / LAYOUT.onnx,
        bytes=written.bytes,
        nodes=written.nodes,
        opset=declared.opset,
        oldest_onnxruntime=declared.oldest.onnxruntime,
        oldest_triton=declared.oldest.triton,
        parity=None if parity is None else replace(parity, candidate=str(out)),
        padding=padding,
        static=data.calibration is not None,
        cached_graph=cached if cached.is_file() else None,
        precision=conversion.precision,
        optimized=conversion.optimize,
    )
