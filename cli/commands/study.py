"""`mixout-export study`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mixout_export_cli.command import Command, given_arguments
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import PATH, flag, option, output_options
from mixout_export_cli.output import (
    InterruptionError,
    Output,
    count_of,
    next_command,
    number,
    table,
)

if TYPE_CHECKING:
    from mixout_export.stages.study.run import StudyResult


def _summary(result: "StudyResult") -> dict[str, Any]:
    """Return what the command prints with `--json`."""
    return {name: value for name, value in vars(result).items() if name != "records"}


def _describe(result: "StudyResult") -> str:
    """Return what the command prints for people."""
    scores: dict[tuple[str, str, str], list[float]] = {}
    failed: dict[tuple[str, str, str], int] = {}
    for record in result.records:
        if record.status == "crashed":
            continue
        group = (record.task, record.arm, record.metric)
        scores.setdefault(group, []).append(record.compared_score)
        failed[group] = failed.get(group, 0) + record.failed
    rows = [
        [*group, str(len(found)), number(sum(found) / len(found)), str(failed[group])]
        for group, found in scores.items()
    ]
    lines = [f"{result.out}: {result.done} of {count_of(result.runs, 'run')} are done"]
    if rows:
        lines.append(table(["task", "arm", "metric", "runs", "mean", "failed"], rows))
    if result.stopped_by_budget:
        lines.append("The budget of the plan is used up, so no more runs were started.")
    if result.other:
        lines.append(f"{count_of(result.other, 'recorded run')} are not in the plan.")
    for record in result.crashed:
        error = (record.error or "").strip().splitlines()[-1]
        lines.append(f"crashed: {record.task}, {record.arm}, seed {record.seeds.masks}: {error}")
    return "\n".join(lines)


@click.command(cls=Command)
@click.argument("plan", type=PATH)
@click.argument("out", type=PATH)
@option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Where runs are done: worker processes on this machine, or a Ray cluster.",
)
@option("--address", metavar="ADDRESS", help="Address of an existing Ray cluster.  [optional]")
@option(
    "--workers",
    type=int,
    metavar="N",
    help="Runs at the same time.  [default: cores divided by the plan's threads]",
)
@option(
    "--device",
    metavar="NAME",
    help="Device: cpu, cuda, cuda:N or mps.  [default: a GPU if there is one]",
)
@flag("--overwrite", help="Remove the records in OUT and start anew.")
@output_options
def study(
    plan: Path,
    out: Path,
    *,
    engine: str,
    address: str | None,
    workers: int | None,
    device: str | None,
    overwrite: bool,
    output: Output,
) -> int:
    """Compare the arms of PLAN, a TOML file, on its tasks and seeds, and write records to OUT.

    Each run is a `prepare` and a `train`. Runs that OUT has already are not repeated, so the same
    command continues a study that was interrupted, and does what was added to the plan. Ctrl-C
    saves the runs in progress.
    """
    with quick_imports():
        from mixout_export.errors import TrainingStoppedError
        from mixout_export.stages.study.engines import make_engine
        from mixout_export.stages.study.run import run_study
    from mixout_export_cli.progress import StudyDisplay
    from mixout_export_cli.stopping import StopRequest

    words = [word for word in given_arguments() if word != "--overwrite"]
    to_continue = next_command("study", *words)
    try:
        with (
            StopRequest(notice=output.shows_progress) as must_stop,
            StudyDisplay(output) as display,
        ):
            result = run_study(
                plan,
                out,
                engine=lambda read: make_engine(
                    engine, workers=workers, threads=read.threads, device=device, address=address
                ),
                device=device,
                overwrite=overwrite,
                observer=display,
                must_stop=must_stop,
            )
    except TrainingStoppedError as error:
        said = f"{error}, and those in progress are saved; to continue: {to_continue}"
        raise InterruptionError(said, must_stop.number) from error
    except KeyboardInterrupt as error:
        said = f"interrupted; the runs that are done are in {out}; to continue: {to_continue}"
        raise InterruptionError(said, must_stop.number) from error
    output.result(_summary(result), _describe(result))
    return 1 if result.crashed else 0
