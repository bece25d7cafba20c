"""`mixout-export push`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixout_export_cli.command import Command, given_arguments
from mixout_export_cli.options import PATH, flag, option, output_options
from mixout_export_cli.output import Output, count_of, human_size, next_command

if TYPE_CHECKING:
    from mixout_export.stages.push import PushPlan


def _shown(plan: "PushPlan") -> str:
    lines = [
        f"  {file.path}  {human_size(file.bytes)}{'' if file.listed else '  (not in the manifest)'}"
        for file in plan.files
    ]
    branch = f", branch {plan.revision}" if plan.revision else ""
    private = ", private" if plan.private else ""
    where = f"to {plan.repo} at {plan.endpoint}{branch}{private}"
    vouched = "" if plan.has_manifest else "; not checked, because the folder has no manifest"
    what = f"{count_of(len(plan.files), 'file')}, {human_size(plan.bytes)}"
    return "\n".join([f"{plan.folder} ({plan.kind}) {where}:", *lines, f"{what}{vouched}"])


def _confirm(plan: "PushPlan") -> None:
    if not sys.stdin.isatty():
        raise click.UsageError(
            "push asks before it uploads, and there is no terminal to ask on; give --yes to upload "
            "without asking, or --dry-run to see the files."
        )
    click.echo(_shown(plan), err=True)
    if not click.confirm("Upload them?", err=True):
        raise click.ClickException("nothing was uploaded")


@click.command(cls=Command)
@click.argument("folder", type=PATH)
@click.argument("repo")
@flag("--private", help="Create a private repository. Stops if REPO exists and is public.")
@option("--revision", metavar="BRANCH", help="Branch to upload to.  [default: main]")
@option("--message", metavar="TEXT", help="Commit message.  [default: a description of FOLDER]")
@flag("--dry-run", help="Show what would be uploaded, and upload nothing.")
@flag("--yes", help="Upload without asking first.")
@output_options
def push(
    folder: Path,
    repo: str,
    *,
    private: bool,
    revision: str | None,
    message: str | None,
    dry_run: bool,
    yes: bool,
    output: Output,
) -> None:
    """Upload FOLDER to REPO (OWNER/NAME) on the Hugging Face hub.

    This is the only command that uploads anything. It shows the files and asks first. It refuses a
    folder that changed since it was written, and skips hidden files. Log in with `hf auth login`,
    or set HF_TOKEN.
    """
    from mixout_export.stages.push import plan_push, push_folder

    plan = plan_push(folder, repo, revision=revision, private=private)
    if dry_run:
        words = (word for word in given_arguments() if word != "--dry-run")
        following = next_command("push", *words)
        output.result(plan, f"{_shown(plan)}\nnothing was uploaded", following=following)
        return
    added = [file.path for file in plan.files if not file.listed]
    if not yes:
        _confirm(plan)
    elif added:
        output.note(f"warning: uploads files that are not in the manifest: {', '.join(added)}")
    result = push_folder(plan, message=message)
    output.result(result, f"{count_of(result.files, 'file')} uploaded", following=result.url)
