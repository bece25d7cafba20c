"""`mixout-export inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mixout_export_cli.command import Command
from mixout_export_cli.following import after_inspection
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import PATH, column_option, field_options, option, output_options
from mixout_export_cli.output import Output, count_of, human_size, table

if TYPE_CHECKING:
    from mixout_export.stages.data_inspection import DataInspection
    from mixout_export.stages.inspection import Inspection

_KINDS = {
    "huggingface": "plain Hugging Face checkpoint",
    "mixout": "mixout checkpoint",
    "onnx": "ONNX graph",
    "bundle": "bundle for a server",
}


#: Entries of the provenance that have lines of their own.
_SAID = ("format_version", "labels", "task", "config_changes", "head", "reinitialized")

#: What other entries are called, if not by their name.
_NAMES = {
    "p": "mix probability",
    "granularity": "one mask bit per",
    "target_modules": "mixed modules",
    "exclude_modules": "not mixed",
    "pretrained_sha256": "pretrained weights SHA-256",
    "pretrained_xxh3": "pretrained weights XXH3",
    "source_sha256": "source SHA-256",
    "tool_version": "written by version",
}
_SHOWN_DIGEST = 16
_SHOWN_LABELS = 20


def _facts(inspection: "Inspection") -> list[str]:
    dtypes = ", ".join(f"{count} {name}" for name, count in inspection.dtypes.items())
    model = [
        ("architecture", inspection.architecture or "unknown"),
        ("task", inspection.task or "none, the model has no head"),
        ("labels", ", ".join(inspection.labels or ())),
        ("weights", f"{inspection.parameters:,} in {dtypes} tensors"),
    ]
    facts = [] if inspection.kind == "bundle" else model
    for key, value in inspection.provenance.items():
        if key not in _SAID:
            facts.append((_NAMES.get(key, key.replace("_", " ")), _inline(value)))
    facts.append(("fresh head", _head(inspection)))
    again = inspection.provenance.get("reinitialized", {})
    facts.append(("re-initialized", ", ".join(again.get("modules", ()))))
    for change in inspection.provenance.get("config_changes", []):
        before = change["before"] if change["present"] else "not set"
        facts.append(("config changed", f"{change['key']}: {before} -> {change['after']}"))
    width = max(len(name) for name, _ in facts)
    trained = {None: "", 0.0: ", not trained yet"}.get(inspection.distance, ", trained")
    lines = [f"{inspection.path}: {_KINDS[inspection.kind]}{trained}"]
    lines += [f"  {name:<{width}}  {value}" for name, value in facts if value]
    lines += [f"  {human_size(size):>{width}}  {name}" for name, size in inspection.files.items()]
    return lines


def _head(inspection: "Inspection") -> str:
    """Return the parameters of the fresh head and how it is regularized, "" without one."""
    head = inspection.provenance.get("head") if inspection.kind == "mixout" else None
    if not head or not head["keys"]:
        return ""
    how = {
        "dropout": f"with dropout {head['dropout']:g} before it",
        "mixout": "with mixout toward its initial value",
    }.get(head["treatment"], "without regularization")
    return f"{', '.join(head['keys'])}, {how}"


def _chain(inspection: "Inspection") -> list[str]:
    """Return the history of the folder, a line for each step."""
    if not inspection.chain:
        return []
    rows = [
        [
            link.step,
            link.weights_sha256[:_SHOWN_DIGEST] + "…",
            link.name or ", ".join(f"{data.role} {data.name}" for data in link.data),
        ]
        for link in inspection.chain
    ]
    lines = ["", table(["step", "weights SHA-256", "input"], rows)]
    lines += [f"Not listed in the manifest: {name}" for name in inspection.unlisted]
    if not inspection.broken:
        lines.append(
            "The manifest matches: the listed files are unchanged, and each step used the weights "
            "of the step before."
        )
    return lines


def _inline(value: object) -> str:
    """Return a value on one line, "" for nothing. Digests are whole only with `--json`."""
    if value is None:
        return ""
    if isinstance(value, dict):
        parts = ((name.replace("_", " "), _inline(inner)) for name, inner in value.items())
        return ", ".join(f"{name} {text}" for name, text in parts if text)
    if isinstance(value, (list, tuple)):
        return ", ".join(_inline(inner) for inner in value)
    text = str(value)
    return text[:_SHOWN_DIGEST] + "…" if _is_digest(text) else text


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _is_data(path: Path) -> bool:
    """Return whether a path is a data file, without importing what reads it for other paths."""
    if path.is_dir() and not any(path.glob("dataset_*.json")):
        return False
    if path.suffix in ("", ".onnx", ".safetensors", ".json") and not path.is_dir():
        return False
    from mixout_export.data.tables import is_data

    return is_data(path)


def _inspect_data(path: Path, output: Output, options: dict[str, Any]) -> None:
    """Describe a data file."""
    with quick_imports():
        from mixout_export.data.columns import ColumnNames
        from mixout_export.data.separated import FieldFormat
        from mixout_export.stages.data_inspection import inspect_data

    names = {name: options[f"{name}_column"] for name in ("text", "text_pair", "label")}
    found = inspect_data(
        path,
        model=options["model"],
        max_length=options["max_length"],
        columns=ColumnNames.named(**names),
        fields=FieldFormat(options["delimiter"], options["quoting"]),
    )
    output.result(found, "\n".join(_data_lines(found)))


def _long_rows(found: "DataInspection", about: str) -> tuple[str, str]:
    """Return what happens to the rows that are longer than a sequence.

    `about` is "about " if lengths are estimated, else "".
    """
    if found.split:
        rows = count_of(found.split, "row")
        return "windows", f"{rows} longer than --max-length {found.max_length}, none is cut"
    return "cut", f"{about}{count_of(found.cut, 'row')} at --max-length {found.max_length}"


def _data_lines(found: "DataInspection") -> list[str]:
    """Return the description of a data file."""
    about = "" if found.counted else "about "
    tokens = ", ".join(f"{name} {about}{count:,}" for name, count in found.tokens.items())
    total = sum(found.labels.values())
    facts = [
        *found.columns.items(),
        ("tokens", tokens + ("" if found.counted else " (estimated; --model counts them)")),
        _long_rows(found, about),
        ("duplicates", count_of(found.duplicates, "row")),
        ("contradictions", f"{count_of(found.contradictions, 'text')} with different labels"),
        ("bad rows", f"{found.bad_rows:,}{found.bad and ': ' + found.bad}"),
        ("suggestion", f"--batch-size {found.batch_size}"),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [f"{found.path}: {count_of(found.rows, 'row')}"]
    lines += [f"  {name:<{width}}  {value}" for name, value in facts]
    shown = list(found.labels.items())[:_SHOWN_LABELS]
    if shown:
        rows = [[name, f"{count:,}", f"{count / total:.1%}"] for name, count in shown]
        lines += ["", table(["label", "rows", "share"], rows)]
        if len(found.labels) > len(shown):
            lines.append(f"and {len(found.labels) - len(shown):,} more labels")
    return lines


@click.command(cls=Command)
@click.argument("path", type=PATH)
@option(
    "--plot",
    type=PATH,
    metavar="FILE",
    help="For a Mixout checkpoint: draw how far each layer has moved, and write the picture to "
    "this file, png, svg or pdf.  [optional]",
)
@option(
    "--model",
    type=PATH,
    metavar="FOLDER",
    help="For a data file: the checkpoint that will read it. Its tokenizer counts tokens, and its "
    "task finds the columns. Without it, tokens are estimated.  [optional]",
)
@option(
    "--max-length",
    type=int,
    metavar="TOKENS",
    help="For a data file: count the rows that are longer.  [default: 128, or that of the training "
    "of --model]",
)
@column_option("--text-column", "the text of a data file")
@column_option("--text-pair-column", "the second text of a data file")
@column_option("--label-column", "the label of a data file")
@field_options
@output_options
def inspect(path: Path, *, plot: Path | None, output: Output, **options: Any) -> None:
    """Describe PATH: a model folder, an ONNX graph, a bundle, or a data file.

    For a model, the command shows how it was made and how far each mixed layer has moved from its
    pretrained weights. The exit code is 3 if the files do not match their manifest. For a data
    file, the command shows lengths, labels, duplicates and a batch size to start with.
    """
    if _is_data(path):
        if plot is not None:
            raise click.UsageError("--plot is for mixout checkpoints; leave it out.")
        _inspect_data(path, output, options)
        return
    given = [name for name, value in options.items() if value is not None]
    if given:
        name = given[0].replace("_", "-")
        raise click.UsageError(f"--{name} is for data files; leave it out.")
    from mixout_export.errors import ParityError
    from mixout_export.stages.inspection import inspect_path, plot_distances

    inspection = inspect_path(path)
    if plot is not None:
        plot_distances(inspection, plot)
    lines = _facts(inspection)
    if inspection.layers:
        rows = [
            [layer.name, "x".join(map(str, layer.shape)), f"{layer.relative:.5f}"]
            for layer in inspection.layers
        ]
        lines += ["", table(["mixed layer", "shape", "distance"], rows)]
        lines.append(
            "distance = |w-u|/|u|, how far the weight w is from its pretrained value u; over all "
            f"mixed layers |w-u| = {inspection.distance:.4f}"
        )
    if plot is not None:
        lines.append(f"plot: {plot}")
    lines += _chain(inspection)
    following = None if inspection.broken else after_inspection(inspection)
    output.result(inspection, "\n".join(lines), following=following)
    if inspection.broken:
        more = len(inspection.broken) - 1
        raise ParityError(inspection.broken[0] + (f" (and {more} more)" if more else ""))
