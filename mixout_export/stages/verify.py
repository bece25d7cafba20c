"""`verify`: compare two artifacts, each a checkpoint, an ONNX model, a bundle or a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.artifact import Artifact, LocalArtifact
from mixout_export.checkpoint.interface import ModelInterface, shared_interface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.data.columns import ColumnNames
from mixout_export.data.evaluation import EvaluationData
from mixout_export.data.separated import FieldFormat
from mixout_export.errors import ArgumentError
from mixout_export.files.input_files import InputFiles
from mixout_export.parity.battery import Battery, build_battery, measure_coverage
from mixout_export.parity.comparison import (
    Outputs,
    Watch,
    check_agreement,
    compare_artifacts,
)
from mixout_export.parity.description import interfaces
from mixout_export.parity.drift import DRIFT_TOLERANCES, draw_drift, pick_batch
from mixout_export.parity.inputs_file import load_inputs, save_inputs
from mixout_export.parity.result import ParityResult
from mixout_export.parity.self_test.examination import ReferenceOutputs, self_test
from mixout_export.provenance.manifest import damage_explained
from mixout_export.provenance.signature import check_signature
from mixout_export.report.facts import Facts, flip_sentences, gather_facts
from mixout_export.report.page import check_report, write_report
from mixout_export.report.rows import DataRows
from mixout_export.runners import CPU_PROVIDER
from mixout_export.runners.onnx_runner import check_provider
from mixout_export.served.address import is_address, parse_address
from mixout_export.served.options import ServingOptions
from mixout_export.stages.verify_data import MetricsOfBoth, data_batches, read_data
from mixout_export.stages.verify_server import check_options, with_serving


def _check_tolerance(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value < float("inf"):
        raise ArgumentError(f"{name}: got {value!r}, expected a finite number of at least 0")


def _settle_battery(
    left: LocalArtifact,
    interface: ModelInterface,
    *,
    examples: Sequence[Batch],
    inputs: Path | None,
    save_inputs_to: Path | None,
    seed: int,
) -> Battery:
    """Read or build the inputs, and save them first, so that a crash can be repeated."""
    if inputs is not None:
        batches = load_inputs(inputs, interface)
        battery = Battery(batches, measure_coverage(batches, interface))
    else:
        task = left.task_name
        battery = build_battery(interface, task=task, seed=seed, examples=examples)
    if save_inputs_to is not None:
        save_inputs(save_inputs_to, battery.batches)
    return battery


def _with_drift(
    result: ParityResult, left: LocalArtifact, right: Artifact, battery: Battery
) -> ParityResult:
    """Add the drift map, if both sides could be run and know their modules."""
    if right.session is not None or not result.outputs:
        return result
    for side in (left, right):
        if not side.knows_modules:
            why = f"{side.where} does not record its modules; export it again with this version"
            return replace(result, no_drift=why)
    tolerance = DRIFT_TOLERANCES.get(result.precision, DRIFT_TOLERANCES["fp32"])
    if result.precision == "given" and result.tolerance is not None:
        tolerance = max(tolerance, result.tolerance.rtol)
    batch = pick_batch(battery.batches, result.outputs)
    drift = draw_drift(left, right, batch, tolerance=tolerance, headless=result.headless)
    return replace(result, drift=drift)


def _signature_problems(candidate: Path | str, key: Path | None) -> tuple[str, ...]:
    """Return what is wrong with the candidate's signature, if a key is given."""
    if key is None:
        return ()
    if is_address(str(candidate)):
        raise ArgumentError(
            f"signature: {candidate} is a server, which shows no signature; check the bundle that "
            "the server loaded"
        )
    problem = check_signature(Path(candidate), key)
    return (problem,) if problem else ()


def _open(
    reference: Path, candidate: Path | str, *, provider: str, serving: ServingOptions | None
) -> tuple[LocalArtifact, Artifact]:
    """Open and load both sides.

    Raises:
        ParityError: A folder cannot be opened, and its manifest says what is damaged.
    """
    ours = InputFiles(reference)
    if is_address(str(candidate)):
        with damage_explained(ours):
            left = open_artifact(ours, provider=provider)
            left.load()
        address = parse_address(str(candidate))
        return left, open_artifact(address, serving=serving, reference=left)
    theirs = ours.at(Path(candidate))
    with damage_explained(ours, theirs):
        left, right = (open_artifact(files, provider=provider) for files in (ours, theirs))
        left.load()
        right.load()
    return left, right


def _all_of(*watches: Watch | None) -> Watch:
    """Return a function that passes the outputs of each batch to several others."""

    def watch(number: int, reference: Outputs, candidate: Outputs) -> None:
        for one in watches:
            if one is not None:
                one(number, reference, candidate)

    return watch


@dataclass(frozen=True)
class _Asked:
    """What a user asks of the comparison of each graph; see `verify_checkpoints`."""

    data: Path | None
    max_examples: int | None
    max_length: int | None
    columns: ColumnNames
    fields: FieldFormat
    inputs: Path | None
    save_inputs_to: Path | None
    seed: int
    tolerances: Mapping[str, float | None]
    drift: bool
    test_self: bool

    def read(
        self, left: LocalArtifact, right: Artifact, interface: ModelInterface
    ) -> EvaluationData | None:
        """Read the user's table; None without one."""
        if self.data is None:
            return None
        return read_data(
            self.data,
            left,
            right,
            interface,
            columns=self.columns,
            max_examples=self.max_examples,
            max_length=self.max_length,
            fields=self.fields,
        )


@dataclass(frozen=True)
class _Compared:
    """A comparison of two sides, and the rows of the user's table in it."""

    result: ParityResult
    left: LocalArtifact
    right: Artifact
    rows: DataRows | None

    def facts(self) -> Facts:
        """Gather what a report shows."""
        return gather_facts(self.result, self.left, self.right, rows=self.rows)


def _compare(left: LocalArtifact, right: Artifact, asked: _Asked) -> _Compared:
    """Compare two loaded sides, the second of which is a single graph or folder."""
    interface = shared_interface(*interfaces(left, right))
    table = asked.read(left, right, interface)
    battery = _settle_battery(
        left,
        interface,
        examples=() if table is None else data_batches(table),
        inputs=asked.inputs,
        save_inputs_to=asked.save_inputs_to,
        seed=asked.seed,
    )
    metrics = None
    if table is not None:
        metrics = MetricsOfBoth(table, first=len(battery.batches) - len(table.batches))
    kept = ReferenceOutputs() if asked.test_self else None
    result = compare_artifacts(
        left,
        right,
        battery=battery,
        seed=asked.seed,
        watch=_all_of(metrics, kept),
        **asked.tolerances,
    )
    if asked.drift or not result.holds:
        result = _with_drift(result, left, right, battery)
    if metrics is not None:
        result = replace(result, metrics=metrics.result(), cut=metrics.data.cut)
    if right.session is not None:
        result = with_serving(result, left, right.session, interface, seed=asked.seed)
    elif kept is not None and result.holds:
        tested = self_test(left, right, battery=battery, verdict=result, outputs=kept)
        result = replace(result, self_test=tested)
    rows = None if metrics is None else DataRows(metrics.data, metrics.first)
    result = replace(result, flips=flip_sentences(result, left, right, rows))
    return _Compared(result, left, right, rows)


def verify_checkpoints(
    reference: Path | str,
    candidate: Path | str,
    *,
    data: Path | None = None,
    max_examples: int | None = None,
    max_length: int | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    choices_column: str | None = None,
    image_column: str | None = None,
    delimiter: str | None = None,
    quoting: str | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    provider: str = CPU_PROVIDER,
    inputs: Path | None = None,
    save_inputs_to: Path | None = None,
    seed: int = 0,
    drift: bool = False,
    test_self: bool = False,
    min_agreement: float | None = None,
    report_to: Path | None = None,
    command: str | None = None,
    serving: ServingOptions | None = None,
    signature: Path | None = None,
) -> ParityResult:
    """Compare two artifacts. `ParityResult` says what is required for parity.

    Args:
        reference: The side that is right by definition: a mixout checkpoint, a Hugging Face folder,
            an ONNX folder, a bundle or an `.onnx` file.
        candidate: The side that is checked: any of these, or the address of a model on a server,
            `http://host:port/v2/models/NAME`.
        data: A table to run in addition to the battery. If it has labels, the metrics of the task
            are computed on both sides.
        max_examples: Most rows of `data` to run; None runs all.
        max_length: Longest sequence of `data` in tokens; None takes that of the training.
        text_column: Column of its text; None finds it by the usual names.
        text_pair_column: Column of its second text; None finds it.
        label_column: Column of its labels; None finds it.
        choices_column: Column of its choices; None finds it.
        image_column: Column of its images; None finds it.
        delimiter: Character between the fields of a csv or tsv file; None takes the usual one.
        quoting: How its fields are quoted; see `FieldFormat`.
        atol: Absolute tolerance. None means 1e-5, 5e-3 for weights rounded to fp16, and 4e-2 for
            weights rounded to bf16. If `atol` or `rtol` is given, the weights of two folders may
            differ by as much too.
        rtol: Relative tolerance. None means 1e-4, 1e-3 and 8e-3.
        provider: onnxruntime's execution provider.
        inputs: An `.npz` file of inputs to run instead of the battery.
        save_inputs_to: An `.npz` file to write the inputs to.
        seed: Seed of the battery.
        drift: Compare the output of every module even if parity holds. This is always done if it
            does not hold, and for a report.
        test_self: If parity holds, put known faults into copies of the candidate and check that
            each is caught.
        min_agreement: Smallest share of equal decisions. None uses the default of the precision,
            which only int8 has.
        report_to: An `.html` file to show the result in, whether or not parity holds.
        command: The command that the report shows, quoted for a shell.
        serving: How to ask a server; None asks as `ServingOptions()` does.
        signature: A public key. The candidate must carry a valid signature for it.

    Raises:
        ArgumentError: An argument is outside its domain, or there is no such provider.
        CheckpointError: An artifact cannot be opened or run.
        DataError: `data` or `inputs` cannot be read, or the models do not take them.
        OutputError: `save_inputs_to` or `report_to` cannot be written.
        ParityError: A server mixes up answers.
        ServerError: A server cannot be asked, or does not keep to the protocol.
    """
    _check_tolerance("atol", atol)
    _check_tolerance("rtol", rtol)
    check_agreement(min_agreement)
    if max_examples is not None and max_examples < 1:
        raise ArgumentError(f"max-examples: got {max_examples}, expected at least 1")
    if max_examples is not None and data is None:
        raise ArgumentError("max-examples: limits the rows of a data file; give --data")
    if max_length is not None and data is None:
        raise ArgumentError("max-length: cuts the texts of a data file; give --data")
    columns = ColumnNames.named(
        text=text_column,
        text_pair=text_pair_column,
        label=label_column,
        choices=choices_column,
        image=image_column,
    )
    for name, column in columns.identity().items():
        if column is not None and data is None:
            option = name.replace("_", "-")
            raise ArgumentError(f"{option}: names a column of a data file; give --data")
    if inputs is not None and data is not None:
        raise ArgumentError("inputs: replaces everything that is run; leave --data out")
    if report_to is not None:
        check_report(report_to)
    check_provider(provider)
    check_options(reference, candidate, serving=serving, drift=drift, self_test=test_self)
    unsigned = _signature_problems(candidate, signature)
    left, right = _open(Path(reference), candidate, provider=provider, serving=serving)
    left.check_single()
    asked = _Asked(
        data=data,
        max_examples=max_examples,
        max_length=max_length,
        columns=columns,
        fields=FieldFormat(delimiter, quoting),
        inputs=inputs,
        save_inputs_to=save_inputs_to,
        seed=seed,
        tolerances={"atol": atol, "rtol": rtol, "min_agreement": min_agreement},
        drift=drift or report_to is not None,
        test_self=test_self,
    )
    compared = [_compare(left, right, asked)]
    for graph in right.other_graphs:
        other = open_artifact(left.files.at(graph), provider=provider)
        other.load()
        compared.append(_compare(left, other, replace(asked, save_inputs_to=None)))
    problems = [problem for side in (left, right) for problem in side.manifest_problems()]
    result, *others = (each.result for each in compared)
    result = replace(result, manifests=(*problems, *unsigned), others=tuple(others))
    if others and right.graph is not None:
        result = replace(result, candidate=str(right.graph))
    if report_to is not None:
        facts = [each.facts() for each in compared]
        shown = replace(facts[0], result=result, command=command, others=tuple(facts[1:]))
        write_report(report_to, shown)
    return result
