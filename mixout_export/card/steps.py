"""Write the card of each step, from the card of its input and from what the step did."""

from dataclasses import replace
from typing import Any

from mixout_export.card.document import Card, opening
from mixout_export.card.facts import CollapseFacts, ExportFacts, TrainingFacts
from mixout_export.card.header import RESULTS, hub_id, inherited, tags
from mixout_export.card.markdown import inline, table
from mixout_export.card.results import SHOWN_LABELS
from mixout_export.card.usage import graph_usage, model_usage
from mixout_export.checkpoint.mixout_metadata import MixoutMetadata
from mixout_export.tasks import known_task
from mixout_export.version import __version__

#: Sections that a step replaces.
RESULTS_SECTION, TRAINING, CURVES = "Results", "How it was trained", "Curves"
PARITY, USE, CITATION = "Parity", "Use", "Citation"

_CITATION = """During training, mixout randomly replaces weights by their pretrained values.
At inference the model uses its own weights only, like any other model.

```bibtex
@inproceedings{lee2020mixout,
  title = {Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models},
  author = {Lee, Cheolhyoung and Cho, Kyunghyun and Kang, Wanmo},
  booktitle = {International Conference on Learning Representations},
  year = {2020},
  url = {https://arxiv.org/abs/1909.11299},
}
```"""


def _base_name(metadata: MixoutMetadata) -> str:
    return metadata.base.name or "a pretrained checkpoint"


def _this_model(metadata: MixoutMetadata) -> str:
    return f"This model is {inline(_base_name(metadata))}"


def model_title(metadata: MixoutMetadata) -> str:
    """Name a model by its base and its task, because a folder's name means nothing elsewhere."""
    task = f" for {metadata.task}" if metadata.task else ""
    return f"{_base_name(metadata).rpartition('/')[2]}{task}"


def strategy_name(metadata: MixoutMetadata, *, decay_toward: str, weight_decay: float) -> str:
    """Return the strategy in the paper's notation, as in "mixout(0.7) + wdecay(pre, 0.01)"."""
    p = metadata.config.p
    mixed = f"mixout({p:g})" if p else "no mixout"
    if metadata.config.granularity != "neuron" and p:
        mixed = f"{metadata.config.granularity} mixout({p:g})"
    dropout = f" + dropout({metadata.dropout:g})" if metadata.dropout else ""
    toward = "pre" if decay_toward == "pretrained" else "0"
    decay = f" + wdecay({toward}, {weight_decay:g})" if weight_decay else ""
    return mixed + dropout + decay


def _header(metadata: MixoutMetadata, before: Card) -> dict[str, Any]:
    task = known_task(metadata.task)
    # a base that is a folder may itself have been made from a model of the hub
    named = hub_id(metadata.base) or before.header.get("base_model")
    return {
        **inherited(before.header, metadata.base),
        "library_name": "transformers",
        "pipeline_tag": None if task is None else task.pipeline_tag,
        "base_model": named,
        "base_model_relation": "finetune" if named else None,
        "tags": ["mixout"],
    }


def prepared_card(metadata: MixoutMetadata, base: Card) -> Card:
    """Return the card of a prepared checkpoint, which keeps the license of the base's card."""
    lead = (
        f"{_this_model(metadata)}, prepared by mixout-export {__version__} to be finetuned "
        f"for {metadata.task} with mixout({metadata.config.p:g}). It is not finetuned yet."
    )
    return Card(_header(metadata, base), opening(inline(model_title(metadata)), lead)).ending_with(
        {CITATION: _CITATION}
    )


def _options(metadata: MixoutMetadata, facts: TrainingFacts) -> dict[str, Any]:
    """Return the rows of the table of options, with the labels of a classifier."""
    labels = metadata.labels or ()
    if len(labels) < 2:
        return dict(facts.settings)
    more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
    return {**facts.settings, "labels": ", ".join(labels[:SHOWN_LABELS]) + more}


def trained_card(metadata: MixoutMetadata, facts: TrainingFacts, prepared: Card) -> Card:
    """Return the card of a trained checkpoint, from the card of the prepared one."""
    task = known_task(metadata.task)
    title, evaluation = model_title(metadata), facts.evaluation
    lead = (
        f"{_this_model(metadata)}, finetuned for {metadata.task} with {facts.strategy} by "
        f"mixout-export {__version__}."
    )
    header = _header(metadata, prepared)
    header["tags"] = tags(prepared.header if prepared.is_ours else {}, *header["tags"])
    header["datasets"] = [facts.dataset] if facts.dataset else None
    if evaluation is not None:
        header["metrics"] = evaluation.metric_ids(task)
        index = evaluation.model_index(title, task)
        header["model-index"] = index
    shown = "It was not evaluated."
    if evaluation is not None:
        shown = evaluation.to_markdown(task, metadata.labels or ())
    kept = prepared.sections if prepared.is_ours else ()
    return Card(header, opening(inline(title), lead), kept).ending_with(
        {
            RESULTS_SECTION: shown,
            TRAINING: table(("option", "value"), _options(metadata, facts).items()),
            CURVES: f"![loss and metric at each step]({facts.curves})" if facts.curves else "",
            USE: model_usage(task),
            CITATION: _CITATION,
        }
    )


def _measured_before(card: Card, what: str) -> Card:
    """Return a card that says that its results are those of an earlier model.

    The header then has no results, because the hub would take them for this model's.
    """
    results = card.section(RESULTS_SECTION)
    header = {key: value for key, value in card.header.items() if key not in RESULTS}
    sections = tuple(
        replace(section, text=f"Measured {what}.\n\n{results}")
        if section.heading == RESULTS_SECTION and RESULTS[1] in card.header
        else section
        for section in card.sections
    )
    return replace(card, header=header, sections=sections)


def collapsed_card(metadata: MixoutMetadata, facts: CollapseFacts, trained: Card) -> Card:
    """Return the card of a collapsed checkpoint, from the card of the trained one.

    A card that another trainer wrote is kept, and a missing one is created.
    """
    task = known_task(metadata.task)
    card = trained.without(CURVES) if trained.is_ours else trained
    if not card.opening:
        lead = f"{_this_model(metadata)}, finetuned with mixout({metadata.config.p:g})."
        card = replace(card, opening=opening(inline(model_title(metadata)), lead))
    if not facts.is_exact:
        card = _measured_before(card, "before the weights were changed as described below")
    made = {k: v for k, v in _header(metadata, card).items() if v is not None}
    header = {
        **made,
        **card.header,
        **inherited(card.header, metadata.base),
        "tags": tags(card.header, "mixout"),
    }
    return replace(card, header=header).ending_with(
        {
            PARITY: facts.to_markdown(),
            USE: model_usage(task),
            CITATION: card.section(CITATION) or _CITATION,
        }
    )


def exported_card(facts: ExportFacts, source: Card) -> Card:
    """Return the card of a graph, from the card of the checkpoint.

    If another tool wrote that card, only its header is kept, because its instructions do not apply
    to a graph.
    """
    title = source.title or inline(facts.architecture)
    said = f"{title} in ONNX ({facts.precision}, opset {facts.opset})"
    if source.is_ours:
        card = source.without(CURVES)
    else:
        lead = f"This model is {said}, exported by mixout-export {__version__}."
        card = Card(source.header, opening(title, lead))
    if facts.precision != "fp32" or facts.parity is None:
        card = _measured_before(card, "with PyTorch, before the export")
    header = {
        **inherited(card.header),
        **{k: card.header[k] for k in ("base_model", "datasets", *RESULTS) if k in card.header},
        "library_name": "onnx",
        "pipeline_tag": None if facts.task is None else facts.task.pipeline_tag,
        "tags": tags(card.header, "onnx"),
    }
    parity = facts.parity.to_markdown() if facts.parity else "It was not compared with PyTorch."
    compared = f"{said}, compared with PyTorch.\n\n{parity}" if facts.parity else parity
    return replace(card, header=header).ending_with(
        {
            PARITY: "\n\n".join((compared, *(f"Padding: {each}." for each in facts.padding))),
            USE: "\n\n".join(filter(None, (facts.needs, graph_usage(facts.task, facts.inputs)))),
            CITATION: card.section(CITATION),
        }
    )
