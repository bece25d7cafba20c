"""`mixout-export inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixout_export_cli.command import Command
from mixout_export_cli.following import after_inspection
from mixout_export_cli.options import PATH, option, output_options
from mixout_export_cli.output import Output, human_size, table

if TYPE_CHECKING:
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


@click.command(cls=Command)
@click.argument("path", type=PATH)
@option(
    "--plot",
    type=PATH,
    metavar="FILE",
    help="Plot the distances to this file: png, svg or pdf.  [optional]",
)
@output_options
def inspect(path: Path, *, plot: Path | None, output: Output) -> None:
    """Describe PATH: what it is, how it was made, and how far each mixed layer has moved.

    The exit code is 3 if its files do not match its manifest.
    """
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
