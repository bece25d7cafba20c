"""`training.json`: a run's settings and, once it is complete, its result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.errors import ArgumentError
from mixout_export.files.json_files import read_json, write_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import partial_path
from mixout_export.provenance.links import DataFile
from mixout_export.stages.train.data import DataOptions, TrainingData
from mixout_export.training.options import TrainOptions
from mixout_export.version import __version__

_SOURCES = ("train_file", "eval_file", "dataset")

#: Former name → name of options in the records of earlier versions.
_RENAMED = {"blocks": "pack_sequences"}


@dataclass(frozen=True)
class TrainResult:
    """What `train` did.

    Attributes:
        out: The trained mixout checkpoint.
        metric: Name of the metric that ranked checkpoints.
        metrics: The result's evaluation, empty without evaluation data.
        metrics_before: The untrained model's evaluation, empty without evaluation data.
        steps: Training steps done.
        chosen_step: Step whose model is the result.
        stopped_early: Whether early stopping ended the run.
        seconds: Wall-clock seconds, without those before the run was resumed.
        already_complete: Whether the run was complete before, so that nothing was done.
        chance: The metrics of a model that gives the most frequent answer of the evaluation data
            whatever it reads; see `Examples.chance`. Empty without evaluation data, and for
            language models.
        by_label: The figures of each label on the evaluation data, as `LabelScores` has them;
            empty if the task has no labels, or more than 100.
        confused: The labels that are confused most often, as `Confused` has them.
        notes: What a user should know about the data.
        titles: Metric → its name with the label that it is about, for metrics of one label.
        max_length: Longest sequence in tokens; None in the record of an earlier version.
        cut: How many rows of each file were cut there, as `CutRows` has them.
    """

    out: Path
    metric: str
    metrics: dict[str, float]
    metrics_before: dict[str, float]
    steps: int
    chosen_step: int
    stopped_early: bool
    seconds: float
    already_complete: bool = False
    chance: dict[str, float] = field(default_factory=dict)
    by_label: list[dict[str, Any]] = field(default_factory=list)
    confused: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)
    max_length: int | None = None
    cut: list[dict[str, Any]] = field(default_factory=list)


def run_settings(
    source: PlainCheckpoint, options: TrainOptions, data: TrainingData, *, processes: int
) -> dict[str, Any]:
    """Return the values that must stay the same when a run is resumed."""
    return {
        "options": {**asdict(options), "processes": processes},
        "prepared_sha256": source.weights_sha256(),
        "pretrained_sha256": source.require_metadata().pretrained_sha256,
        "data": data.identity,
        "data_name": data.name,
    }


def _current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded options by the names that they have in this version."""
    return {_RENAMED.get(name, name): value for name, value in options.items()}


def recorded_values(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a recorded run; those that its version did not have as defaults."""
    return {**asdict(TrainOptions()), **_current_names(content["settings"]["options"])}


def _check_resumed(folder: Path, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse to resume the run in `folder` with other settings than its earlier ones."""
    anew = "or give --overwrite to start a new run"
    defaults, options = asdict(TrainOptions()), recorded_values({"settings": earlier})
    for before, now in ((options, settings["options"]), (earlier["data"], settings["data"])):
        for key in sorted({*before, *now}):
            was, name = before.get(key), key.replace("_", "-")
            if was == now.get(key):
                continue
            remedy = "use the same"
            if key in defaults:
                name, remedy = f"--{name}", "leave it out to resume with the same value"
            started = f"without {name}" if was is None else f"with {name} {was}"
            raise ArgumentError(
                f"{folder}: the run was started {started}, got {now.get(key)}; {remedy}, {anew}"
            )
    for key in ("prepared_sha256", "pretrained_sha256"):
        if earlier[key] != settings[key]:
            raise ArgumentError(
                f"{folder}: the run was started from other weights; give the same PREPARED, {anew}"
            )


def _absolute(value: Any) -> Any:
    """Return paths as absolute texts, and any other value as it is."""
    if isinstance(value, tuple):
        return [_absolute(each) for each in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _as_paths(value: str | list[str] | None) -> Path | tuple[Path, ...] | None:
    """Return recorded paths of data files."""
    if isinstance(value, list):
        return tuple(Path(each) for each in value)
    return None if value is None else Path(value)


class RunRecord:
    """The record of the run in a folder, OUT or `OUT.partial`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LAYOUT.training
        self.content: dict[str, Any] = read_json(self._path) if self._path.exists() else {}

    def result(self, out: Path) -> TrainResult | None:
        """Return the result, or None if the run is not complete."""
        result = self.content.get("result")
        return None if result is None else TrainResult(out, already_complete=True, **result)

    def start(
        self,
        settings: dict[str, Any],
        data: DataOptions,
        files: Sequence[DataFile],
        chance: Mapping[str, float],
    ) -> None:
        """Write the settings, after comparing them with those of the run to resume.

        The paths of the data files are recorded until the run is complete, and so is `chance`, so
        that a run that diverges can be judged.

        Raises:
            ArgumentError: The settings differ from those of the run to resume.
        """
        if self.content:
            _check_resumed(self._path.parent, self.content["settings"], settings)
        given = {name: _absolute(value) for name, value in vars(data).items()}
        self.content = {
            "settings": settings,
            "tool_version": __version__,
            "sources": {name: given.pop(name) for name in _SOURCES},
            "columns": given,
            "data_files": [asdict(file) for file in files],
            "chance": dict(chance),
        }
        write_json(self._path, self.content)

    def complete(self, result: TrainResult) -> None:
        """Add the result. Remove the data files' paths, which are nobody else's business."""
        del self.content["sources"], self.content["chance"]
        values = {k: v for k, v in vars(result).items() if k not in ("out", "already_complete")}
        self.content["result"] = values
        write_json(self._path, self.content)


def recorded_options(
    out: Path, given: Mapping[str, Any], *, overwrite: bool = False
) -> dict[str, Any]:
    """Return the options with which a run was started, which is complete or unfinished.

    Args:
        out: The run's OUT.
        given: Options given now. A new data file or data set replaces what is recorded.
        overwrite: Whether a complete run in OUT is to be replaced, so that it does not count.

    Returns:
        Name → value, of `DataOptions` and `TrainOptions`; empty if there is nothing to resume.

    Raises:
        ArgumentError: The record does not name the data files, or has options that are unknown.
    """
    is_complete = not overwrite and RunRecord(out).result(out) is not None
    folder = out if is_complete else partial_path(out)
    record = RunRecord(folder).content
    if not record:
        return {}
    where = folder / LAYOUT.training
    options = _current_names(record["settings"]["options"])
    options.pop("processes", None)
    unknown = sorted(set(options) - {each.name for each in fields(TrainOptions)})
    if is_complete:  # which needs none of them any more
        options = {name: value for name, value in options.items() if name not in unknown}
    elif unknown:
        raise ArgumentError(
            f"{where}: has the unknown option {unknown[0]!r}; resume the run with mixout-export "
            f"{record.get('tool_version')}, or give --overwrite to start a new run"
        )
    sources = record.get("sources")
    has_data = "train_file" in given or "dataset" in given
    if sources is None and "result" not in record and not has_data:
        raise ArgumentError(
            f"{where}: does not name the data files because an earlier version wrote it; give "
            "--train-file, --eval-file and the columns with which the run was started"
        )
    if sources is None or "dataset" in given:
        sources = {}
    elif "train_file" in given:
        sources = {**sources, "dataset": None}
    paths = {k: v if k == "dataset" else _as_paths(v) for k, v in sources.items()}
    return {**options, **paths, **record.get("columns", {})}
