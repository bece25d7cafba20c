"""Find out which command the user types next."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixout_export_cli.command import given_arguments
from mixout_export_cli.output import next_command

if TYPE_CHECKING:
    from mixout_export.stages.inspection import Inspection

#: Port of each server's HTTP interface, as the README.md of its bundle starts it.
PORTS = {"triton": 8000, "mlserver": 8080, "openvino": 8000}


def beside(path: Path, name: str) -> Path:
    """Return a path for a new folder or file next to another, whose name is not taken."""
    stem, _, suffix = name.partition(".")
    found, number = path.parent / name, 2
    while found.exists():
        found = path.parent / f"{stem}-{number}{'.' if suffix else ''}{suffix}"
        number += 1
    return found


def after_prepare(base: str, task: str | None, labels: Sequence[str] | None, prepared: Path) -> str:
    """Return the command that trains a prepared checkpoint, on the demo's data if it fits."""
    from mixout_export.checkpoint.demo_base import DEMO_BASE, DEMO_LABELS, demo_data
    from mixout_export.tasks.image_classification import IMAGE_CLASSIFICATION

    train_file, eval_file = Path("TRAIN.csv"), Path("EVAL.csv")
    if task == IMAGE_CLASSIFICATION.name:
        train_file, eval_file = Path("TRAIN_FOLDER"), Path("EVAL_FOLDER")
    elif base == DEMO_BASE and tuple(labels or ()) == DEMO_LABELS:
        train_file, eval_file = demo_data()
    out = beside(prepared, "trained")
    files = ("--train-file", train_file, "--eval-file", eval_file)
    return next_command("train", prepared, out, *files)


def after_model(path: Path) -> str:
    """Return the command that exports a plain checkpoint."""
    return next_command("onnx", path, beside(path, "onnx"))


def after_graph(path: Path) -> str:
    """Return the command that bundles an ONNX folder, or the folder of an ONNX file."""
    folder = path if path.is_dir() else path.parent
    out = beside(folder, f"{folder.name}-bundle")
    return next_command("bundle", folder, out, "--server", "triton")


def after_bundle(graph: Path, out: Path, *, server: str, name: str) -> str:
    """Return the command that checks a running server, or the folder if it is for a library."""
    if server not in PORTS:
        return next_command("inspect", out)
    address = f"http://127.0.0.1:{PORTS[server]}/v2/models/{name}"
    return next_command("verify", graph, address)


def after_inspection(inspection: "Inspection") -> str:
    """Return the command for what a folder holds."""
    path = inspection.path
    if inspection.kind == "bundle":
        return after_everything(path)
    if inspection.kind == "onnx":
        return after_graph(path)
    if inspection.kind == "mixout":
        if not inspection.distance:
            return after_prepare("", inspection.task, None, path)
        return next_command("collapse", path, beside(path, "collapsed"))
    if any(link.step in ("prepare", "collapse") for link in inspection.chain):
        return after_model(path)
    task = () if inspection.task else ("--task", "text-classification")
    return next_command("prepare", path, beside(path, "prepared"), *task)


def after_verification(
    reference: Path | str, candidate: Path | str, *, passed: bool, has_report: bool
) -> str:
    """Return the command that shows what differs, or that goes on from the candidate."""
    from mixout_export.files.layout import LAYOUT

    if not passed and not has_report:
        report = beside(Path("report.html"), "report.html")
        return next_command("verify", *given_arguments(), "--report", report)
    if isinstance(candidate, str):
        return after_everything(Path(reference))
    if not passed or (candidate / LAYOUT.mixout_config).is_file():
        return next_command("inspect", candidate)
    if any(candidate.glob("*.safetensors")):
        return after_model(candidate)
    if candidate.is_file() or (candidate / LAYOUT.onnx).is_file():
        return after_graph(candidate)
    return after_everything(candidate)


def after_everything(folder: Path) -> str:
    """Return the command that shows what would be uploaded to the hub."""
    return next_command("push", folder, "OWNER/NAME", "--dry-run")
