"""`mixout-export verify`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mixout_export_cli.command import Command, command_line
from mixout_export_cli.following import after_verification
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import (
    PATH,
    column_option,
    field_options,
    flag,
    length_option,
    option,
    output_options,
    seed_option,
)
from mixout_export_cli.output import Output, labeled, number, table
from mixout_export_cli.serving import PathOrAddress, describe_concurrency, describe_server

if TYPE_CHECKING:
    from mixout_export.parity.result import ParityResult


#: Decisions that differ, as many as are printed.
_SHOWN_FLIPS = 5


def _describe_generation(result: "ParityResult") -> list[str]:
    generation = result.generation
    if generation is None:
        return []
    lines = []
    for output in generation.outputs:
        how = output.name.removeprefix("logits ")
        equal = output.decisions - output.flips
        text = (
            f"{equal} of {output.decisions} tokens equal {how}, max diff {output.max_abs:.2e}, "
            f"sequences of up to {generation.longest} tokens"
        )
        lines.append(labeled("generation", text))
    if generation.ties:
        text = (
            f"{generation.ties} of the different tokens are ties: PyTorch's own logits of both "
            f"tokens differ by at most {max(generation.tie_margins):.1e}"
        )
        lines.append(labeled("note", text))
    if not generation.beyond_window:
        text = f"no sequence is longer than the attention window, {generation.window}"
        lines.append(labeled("note", text))
    return lines


def _describe_drift(result: "ParityResult") -> list[str]:
    drift = result.drift
    if drift is None:
        why = f"not compared: {result.no_drift}"
        return ["", labeled("modules", why)] if result.no_drift else []
    lines = [labeled("modules", f"{len(drift.compared)} of {len(drift.modules)} outputs compared")]
    for label, found in (("largest diff", drift.worst), ("first diff", drift.first)):
        if found is not None:
            text = f"at {found.label}, by {found.relative_l2:.1e} of its norm"
            lines.append(labeled(label, text))
    return ["", *lines]


def _describe_self_test(result: "ParityResult") -> list[str]:
    tested = result.self_test
    if tested is None:
        return []
    rows = [
        [
            fault.fault,
            "-" if fault.not_applicable else ", ".join(fault.caught_by) or "NOTHING",
            f"not applicable: {fault.not_applicable}" if fault.not_applicable else fault.what,
        ]
        for fault in tested.faults
    ]
    caught = len(tested.applied) - len(tested.missed)
    lines = ["", table(["fault", "caught by", "what was done to a copy"], rows), ""]
    lines.append(f"self-test: {caught} of {len(tested.applied)} faults caught")
    if tested.missed_by_battery:
        unseen = ", ".join(fault.fault for fault in tested.missed_by_battery)
        lines.append(f"  the test inputs alone would have missed: {unseen}")
    return lines


def _describe_weights(result: "ParityResult") -> str:
    weights = result.weights
    if weights is None:
        return labeled("weights", "not compared, because a server does not show them")
    how = "; ".join(f"{count} {_way(name)}" for name, count in weights.counts.items())
    how = f" ({how})" if how else ""
    return labeled("weights", f"{weights.accounted} of {weights.total} found{how}")


def _way(name: str) -> str:
    """Return how a tensor was found, in words, from its name in `WeightAudit.counts`."""
    return name.removeprefix("direct, ").replace("direct", "unchanged").replace(", ", " and ")


def _describe_padding(result: "ParityResult") -> list[str]:
    """Return how far the result of a row moves if something is around it."""
    from mixout_export.rounding import difference, share

    padding = result.padding
    if padding is None:
        return []
    rows = [
        [
            effect.title,
            difference(effect.reference_moves),
            difference(effect.moves),
            share(effect.agreement),
            ("yes" if effect.holds else "NO") if effect.judged else "not judged",
        ]
        for effect in padding.effects
    ]
    header = ["a row", "reference changes", "candidate changes", "same label", "within tolerance"]
    notes = [labeled("note", note) for note in padding.notes()]
    return ["", *([table(header, rows)] if rows else []), *notes]


def _describe_judged(result: "ParityResult") -> list[str]:
    """Return which decisions count, for each output, if a share of them has to be equal."""
    lines = []
    for output in () if result.limits.agreement is None else result.outputs:
        judged = output.judged
        if judged is None or not judged.decisions:
            continue
        which, where, rest = "clear ", "generated inputs", "the other ones"
        if output.on_data:
            which, where, rest = "", "data", "those on the generated inputs"
        equal = judged.decisions - judged.flips
        text = (
            f"{output.name}: {equal} of {judged.decisions} {which}decisions equal on the {where}; "
            f"{rest} do not count"
        )
        lines.append(labeled("judged", text))
    return lines


def _describe_flips(result: "ParityResult") -> list[str]:
    """Return the first of the decisions that differ, and say how many more were kept."""
    if not result.flips:
        return []
    more = len(result.flips) - _SHOWN_FLIPS
    lines = ["", "different decisions (reference, then candidate):"]
    lines += [f"  {flip}" for flip in result.flips[:_SHOWN_FLIPS]]
    return [*lines, f"  … and {more} more; --json and --report show them"] if more > 0 else lines


def _describe(result: "ParityResult") -> str:
    """Return what the comparison found, one part for each graph of a bundle."""
    parts = [_describe_graph(each) for each in (result, *result.others)]
    if result.others:
        held = sum(each.passed for each in result.others) + result.graph_holds
        parts.append(f"{held} of {len(parts)} graphs of the bundle are the same model")
    return "\n\n".join(parts)


def _describe_graph(result: "ParityResult") -> str:
    from mixout_export.data.lengths import cut_sentence
    from mixout_export.rounding import difference, share

    lines = [
        labeled("reference", result.reference),
        labeled("candidate", result.candidate),
        _describe_weights(result),
        *describe_server(result.serving),
    ]
    if result.coverage is not None:
        c = result.coverage
        covered = (
            f"covering {c.vocabulary} of {c.vocabulary_size} vocabulary ids, {c.positions} "
            f"positions, {c.segments} segment{'s' if c.segments > 1 else ''}"
        )
        covered = covered if c.vocabulary_size else "images"
        text = f"{c.examples} in {c.batches} batches, {covered}"
        lines.append(labeled("test inputs", text))
    if result.weights is not None:
        lines += [labeled("note", note) for note in result.weights.notes]
    cut = None if result.cut is None else cut_sentence(result.cut)
    if cut is not None:
        lines.append(labeled("note", cut))
    lines += _describe_generation(result)
    if result.outputs:
        rows = [
            [
                o.name,
                difference(o.max_abs),
                difference(o.mean_abs),
                share(result.agreement(o)),
                "yes" if o.holds else "NO",
            ]
            for o in result.all_outputs
        ]
        header = ["output", "max diff", "mean diff", "same label", "within tolerance"]
        lines += ["", table(header, rows), *_describe_judged(result)]
    lines += _describe_padding(result)
    if result.metrics is not None:
        rows = [
            [name, number(ours), number(theirs)] for name, (ours, theirs) in result.metrics.items()
        ]
        lines += ["", table(["metric", "reference", "candidate"], rows)]
    lines += _describe_flips(result)
    lines += describe_concurrency(result.serving)
    lines += _describe_drift(result)
    lines += _describe_self_test(result)
    verdict = "parity holds" if result.graph_holds else "parity does NOT hold"
    lines += [
        "",
        f"{verdict} ({result.precision}: {result.criteria()}), {result.seconds:.1f} s",
    ]
    own = replace(result, others=()).reasons()
    return "\n".join([*lines, *(f"  {reason}" for reason in own)])


@click.command(cls=Command)
@click.argument("reference", type=PathOrAddress())
@click.argument("candidate", type=PathOrAddress())
@option(
    "--data",
    type=PATH,
    metavar="FILE",
    help="Also compare on the texts of this file: csv, tsv, jsonl or parquet, optionally "
    "with .gz.  [optional]",
)
@option("--max-examples", type=int, help="Number of rows of --data to use.  [default: all]")
@length_option
@column_option("--text-column", "the text in --data")
@column_option("--text-pair-column", "the second text in --data")
@column_option("--label-column", "the labels in --data")
@column_option("--choices-column", "the choices in --data")
@column_option("--image-column", "the path of the image in --data")
@field_options
@option(
    "--atol",
    type=float,
    help="Absolute tolerance.  [default: by precision, fp32 1e-5, fp16 5e-3, bf16 4e-2]",
)
@option(
    "--rtol",
    type=float,
    help="Relative tolerance.  [default: by precision, fp32 1e-4, fp16 1e-3, bf16 8e-3]",
)
@option(
    "--provider",
    default="CPUExecutionProvider",
    metavar="NAME",
    help="Execution provider of onnxruntime, for example CUDAExecutionProvider.",
)
@option(
    "--inputs",
    type=PATH,
    metavar="FILE.npz",
    help="Use these test inputs, from an earlier --save-inputs.  [default: generated inputs]",
)
@option(
    "--save-inputs",
    "save_inputs_to",
    type=PATH,
    metavar="FILE.npz",
    help="Save the test inputs to this file, to use them again.  [optional]",
)
@flag(
    "--self-test",
    "test_self",
    help="Also test the comparison itself: put known faults into copies of CANDIDATE and check "
    "that each is found.",
)
@option(
    "--report",
    "report_to",
    type=PATH,
    metavar="FILE.html",
    help="Write the result as one HTML file, for viewing offline.  [optional]",
)
@seed_option("Seed for the generated test inputs.")
@option(
    "--min-agreement",
    type=float,
    help="Minimum share of equal predicted labels, in [0, 1]. For int8, a share below 0.97 also "
    "lifts the limit for probabilities.  [default: 0.97 for int8; other precisions must be within "
    "tolerance instead]",
)
@flag(
    "--drift",
    help="Compare the output of every module. Always on with --report and when the models differ.",
)
@option(
    "--signature",
    type=PATH,
    metavar="KEY",
    help="Require CANDIDATE to carry a valid signature for this public key.  [optional]",
)
@option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    help="For a server: time limit of a request, retries included.  [default: 30]",
)
@option(
    "--concurrency",
    type=int,
    metavar="CLIENTS",
    help="For a server: number of clients that send requests at the same time.  [default: 16]",
)
@option(
    "--requests",
    type=int,
    metavar="COUNT",
    help="For a server: number of requests per client.  [default: 8]",
)
@option(
    "--protocol",
    type=click.Choice(["json", "binary", "grpc"]),
    help="For a server: how tensors are sent.  [default: the fastest that it supports]",
)
@output_options
def verify(
    reference: Path | str,
    candidate: Path | str,
    *,
    output: Output,
    **options: Any,
) -> int:
    """Check that CANDIDATE computes the same as REFERENCE.

    The command compares every weight, then the outputs. Each model can be a Mixout checkpoint, a
    Hugging Face folder, an ONNX folder or file, or a bundle. CANDIDATE can also be a model on a
    server: http://HOST:PORT/v2/models/NAME.

    The exit code is 3 if the models differ, if a manifest or signature check fails, or if
    --self-test finds a fault that the comparison misses.
    """
    with quick_imports():
        from mixout_export.served.options import ServingOptions
        from mixout_export.stages.verify import verify_checkpoints

    given = {name: options.pop(name) for name in ("timeout", "concurrency", "requests", "protocol")}
    for_server = {name: value for name, value in given.items() if value is not None}
    result = verify_checkpoints(
        reference,
        candidate,
        serving=ServingOptions(**for_server) if for_server else None,
        command=command_line(),
        **options,
    )
    following = after_verification(
        reference, candidate, passed=result.passed, has_report=options["report_to"] is not None
    )
    output.result(result, _describe(result), following=following)
    return 0 if result.passed else 3
