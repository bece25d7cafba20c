"""`mixout-export study`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixout_export_cli.command import Command, given_arguments
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import PATH, flag, option, output_options
from mixout_export_cli.output import (
    InterruptionError,
    Output,
    count_of,
    duration,
    last_line,
    next_command,
    number,
    recorded_command,
    table,
)

if TYPE_CHECKING:
    from mixout_export.stages.study.dry_run import DryRun
    from mixout_export.stages.study.run import StudyResult
    from mixout_export.study.summary import Estimate, TaskSummary


def _describe(result: "StudyResult") -> str:
    """Return the recommendation, a table for each task, and what is not done."""
    lines = [result.summary.recommendation.line]
    for task in result.summary.tasks:
        lines += ["", *_describe_task(task, several=len(result.summary.tasks) > 1)]
    done = f"{result.done} of {result.runs} runs are done"
    lines += ["", f"{result.out}: {done}, see {result.report}"]
    if result.stopped_by_budget:
        lines.append("The budget of the plan is used up, so no more runs were started.")
    if result.other:
        verb = "is" if result.other == 1 else "are"
        lines.append(f"{count_of(result.other, 'recorded run')} {verb} not in the plan.")
    crashes = []
    for crash in result.crashed:
        seeds = "all seeds" if crash.refused else f"seed {crash.seeds.masks}"
        crashes.append(f"crashed: {crash.task}, {crash.arm}, {seeds}: {last_line(crash.error)}")
    return "\n".join([*lines, *dict.fromkeys(crashes)])


def _to_train(result: "StudyResult", plan: Path) -> str | None:
    """Return the command that trains a model with the recommended arm.

    Its paths are those of the plan, so it first changes to the folder of the plan.

    Returns:
        The command; None if the plan has several tasks, or if runs are left.
    """
    if not result.commands or result.done < result.runs:
        return None
    folder = shlex.quote(str(plan.parent))
    commands = [recorded_command(command) for command in result.commands]
    return " && ".join([*([] if folder == "." else [f"cd {folder}"]), *commands])


def _describe_task(task: "TaskSummary", *, several: bool) -> list[str]:
    """Return a task's table, and a sentence for each comparison."""
    found = [arm for arm in task.arms if arm.mean is not None]
    if task.metric is None or not found:
        return [f"{task.name}: no run has ended yet"]
    rows = [
        [
            arm.name,
            str(arm.runs),
            *_estimate(arm.mean),
            number(arm.best),
            "-" if arm.failed is None else str(arm.failed.count),
        ]
        for arm in found
    ]
    lines = [
        f"{task.name}: {task.metric}, {number(task.chance)} at chance level",
        table(["arm", "runs", "mean", "95 % interval", "best", "failed"], rows),
        *(comparison.sentence for comparison in task.comparisons),
    ]
    return [*lines, task.recommendation.line] if several else lines


def _estimate(found: "Estimate | None") -> tuple[str, str]:
    """Return a value and its interval."""
    if found is None:
        return "-", "-"
    interval = "-" if found.low is None else f"{number(found.low)} to {number(found.high)}"
    return number(found.value), interval


def _describe_plan(dry: "DryRun") -> str:
    """Return the runs of a plan and the time that they take."""
    rows = [
        [
            run.task,
            run.arm,
            *map(str, (run.head, run.data, run.masks)),
            "done" if run.seconds is None else f"{run.seconds:.0f} s",
        ]
        for run in dry.runs
    ]
    left = len(dry.runs) - dry.done
    said = f"{count_of(len(dry.runs), 'run')}, {dry.done:,} done."
    if left:
        said += (
            f" The other {left:,} take about {duration(dry.seconds)} with "
            f"{count_of(dry.workers, 'worker')}."
        )
    if dry.exceeds_budget:
        said += " The budget of the plan will probably be used up before that."
    return "\n".join([table(["task", "arm", "head", "data", "masks", "time"], rows), said])


@click.command(cls=Command)
@click.argument("plan", type=PATH)
@click.argument("out", type=PATH)
@option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Do the runs in processes on this machine (local), or on a Ray cluster (ray).",
)
@option(
    "--address",
    metavar="HOST:PORT",
    help="Address of a Ray cluster, or auto if the cluster runs on this machine. All its machines "
    "must share the folder OUT. Without it, --engine ray starts a cluster on this machine.  "
    "[optional]",
)
@option(
    "--workers",
    type=int,
    metavar="N",
    help="Number of runs at the same time.  [default: CPU cores divided by the plan's threads; on "
    "a GPU, as many as its memory allows]",
)
@option(
    "--device",
    metavar="NAME",
    help="Device: cpu, cuda, cuda:N or mps.  [default: a GPU if there is one]",
)
@flag("--dry-run", help="List the runs and estimate the time. OUT is not changed.")
@flag("--overwrite", help="Remove what the study in OUT has written, and start again.")
@output_options
def study(
    plan: Path,
    out: Path,
    *,
    engine: str,
    address: str | None,
    workers: int | None,
    device: str | None,
    dry_run: bool,
    overwrite: bool,
    output: Output,
) -> int:
    """Compare finetuning with different options on your data, with several seeds.

    PLAN is a TOML file. It names a base, data files, seeds, and two or more arms. An arm is a set
    of options of `prepare` and `train`. OUT/report.html recommends one arm if the evidence supports
    it. docs/study.md explains plans, and examples/plans has some to start from.

    Each run is a `prepare` and a `train`. Ctrl-C saves the runs in progress and stops. Type the
    same command again to continue. If you have changed PLAN, it does only the new runs.
    """
    with quick_imports():
        from mixout_export.errors import TrainingError, TrainingStoppedError
        from mixout_export.stages.study.engines import EngineOptions
        from mixout_export.stages.study.folder import StudyFolder
        from mixout_export.stages.study.run import run_study
    from mixout_export_cli.progress import StudyDisplay
    from mixout_export_cli.stopping import StopRequest

    chosen = EngineOptions(engine, workers, device, address)
    if dry_run:
        from mixout_export.stages.study.dry_run import dry_run as look_ahead

        planned = look_ahead(plan, out, workers=workers, device=device, overwrite=overwrite)
        output.result(planned, _describe_plan(planned))
        return 0
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
                engine=lambda read: chosen.start(work=StudyFolder(out).work, threads=read.threads),
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
    output.result(result, _describe(result), following=_to_train(result, plan))
    if result.crashed:
        raise TrainingError(
            f"{len(result.crashed)} of {count_of(result.runs, 'run')} crashed, the first with: "
            f"{last_line(result.crashed[0].error)}; to try again: {to_continue}"
        )
    return 0
