"""The card that each step writes, from the card of what it read and from what it did."""

from dataclasses import replace
from typing import Any

from mixout_export.card.document import Card, opening
from mixout_export.card.facts import CollapseFacts, ExportFacts, TrainingFacts
from mixout_export.card.header import RESULTS, hub_id, inherited, pipeline_tag, tags
from mixout_export.card.markdown import inline, table
from mixout_export.card.usage import graph_usage, model_usage
from mixout_export.checkpoint.mixout_metadata import MixoutMetadata
from mixout_export.tasks import known_task
from mixout_export.version import __version__

#: Sections that each step writes again.
RESULTS_SECTION, TRAINING, CURVES = "Results", "How it was trained", "Curves"
PARITY, USE, CITATION = "Parity", "Use", "Citation"

_CITATION = """Mixout replaces weights by their pretrained values at random while training.
In evaluation the model computes with its own weights: it is a plain one.

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


def _title(metadata: MixoutMetadata) -> str:
    """Name a model by what it comes from: what its folder is called means nothing elsewhere."""
    task = f" for {metadata.task}" if metadata.task else ""
    return f"{_base_name(metadata).rpartition('/')[2]}{task}"


def strategy_name(metadata: MixoutMetadata, *, decay_toward: str, weight_decay: float) -> str:
    """Return the strategy in the paper's notation: "mixout(0.7) + wdecay(pre, 0.01)", say."""
    p = metadata.config.p
    mixed = f"mixout({p:g})" if p else "no mixout"
    if metadata.config.granularity == "element" and p:
        mixed = f"element mixout({p:g})"
    dropout = f" + dropout({metadata.dropout:g})" if metadata.dropout else ""
    toward = "pre" if decay_toward == "pretrained" else "0"
    decay = f" + wdecay({toward}, {weight_decay:g})" if weight_decay else ""
    return mixed + dropout + decay


def _header(metadata: MixoutMetadata, before: Card) -> dict[str, Any]:
    task = None if metadata.task is None else known_task(metadata.task)
    # a base that is a folder was made of something, too
    named = hub_id(metadata.base) or before.header.get("base_model")
    return {
        **inherited(before.header, metadata.base),
        "library_name": "transformers",
        "pipeline_tag": pipeline_tag(task),
        "base_model": named,
        "base_model_relation": "finetune" if named else None,
        "tags": ["mixout"],
    }


def prepared_card(metadata: MixoutMetadata, base: Card) -> Card:
    """Return the card of a prepared checkpoint, which passes the base's licence on.

    Args:
        metadata: The checkpoint's mixout metadata.
        base: The base's card, empty if it has none.
    """
    lead = (
        f"{inline(_base_name(metadata))}, prepared by mixout-export {__version__} for finetuning "
        f"for {metadata.task} with mixout({metadata.config.p:g}). It is not finetuned yet."
    )
    return Card(_header(metadata, base), opening(inline(_title(metadata)), lead)).ending_with(
        {CITATION: _CITATION}
    )


def trained_card(metadata: MixoutMetadata, facts: TrainingFacts, prepared: Card) -> Card:
    """Return the card of a trained checkpoint.

    Args:
        metadata: Its mixout metadata.
        facts: What the run did.
        prepared: The card of the checkpoint that it started from.
    """
    task = None if metadata.task is None else known_task(metadata.task)
    title, evaluation = _title(metadata), facts.evaluation
    lead = (
        f"{inline(_base_name(metadata))} finetuned for {metadata.task} with {facts.strategy} by "
        f"mixout-export {__version__}."
    )
    header = _header(metadata, prepared)
    header["tags"] = tags(prepared.header if prepared.is_ours else {}, *header["tags"])
    header["datasets"] = [facts.dataset] if facts.dataset else None
    if evaluation is not None:
        header["metrics"] = evaluation.metric_ids()
        index = evaluation.model_index(title, header["pipeline_tag"] or "other")
        header["model-index"] = index
    shown = "It was not evaluated." if evaluation is None else evaluation.to_markdown()
    kept = prepared.sections if prepared.is_ours else ()
    return Card(header, opening(inline(title), lead), kept).ending_with(
        {
            RESULTS_SECTION: shown,
            TRAINING: table(("setting", "value"), facts.settings.items()),
            CURVES: f"![loss and metric against updates]({facts.curves})" if facts.curves else "",
            USE: model_usage(task),
            CITATION: _CITATION,
        }
    )


def _measured_before(card: Card, what: str) -> Card:
    """Return a card whose results are another model's: the text says so, the header is silent."""
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
    """Return the card of a collapsed checkpoint.

    Args:
        metadata: The mixout metadata of the checkpoint that was collapsed.
        facts: What became of the weights.
        trained: That checkpoint's card; one that another trainer wrote is kept, one that is
            missing is made.
    """
    task = None if metadata.task is None else known_task(metadata.task)
    card = trained.without(CURVES) if trained.is_ours else trained
    if not card.opening:
        lead = f"{inline(_base_name(metadata))} with mixout({metadata.config.p:g})."
        card = replace(card, opening=opening(inline(_title(metadata)), lead))
    if not facts.is_exact:
        card = _measured_before(card, "before the weights were changed as told below")
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
    """Return the card of a graph.

    Args:
        facts: What the graph is.
        source: The card of the checkpoint; of one that another wrote, only the header is kept, for
            what it says of its use is not so of a graph.
    """
    title = source.title or inline(facts.architecture)
    said = f"{title} in ONNX ({facts.precision}, opset {facts.opset})"
    if source.is_ours:
        card = source.without(CURVES)
    else:
        lead = f"{said}, exported by mixout-export {__version__}."
        card = Card(source.header, opening(title, lead))
    if facts.precision != "fp32" or facts.parity is None:
        card = _measured_before(card, "with PyTorch, before the export")
    header = {
        **inherited(card.header),
        **{k: card.header[k] for k in ("base_model", "datasets", *RESULTS) if k in card.header},
        "library_name": "onnx",
        "pipeline_tag": pipeline_tag(facts.task),
        "tags": tags(card.header, "onnx"),
    }
    parity = facts.parity.to_markdown() if facts.parity else "It was not compared with PyTorch."
    return replace(card, header=header).ending_with(
        {
            PARITY: f"{said}, compared with PyTorch.\n\n{parity}" if facts.parity else parity,
            USE: graph_usage(facts.task, facts.inputs),
            CITATION: card.section(CITATION),
        }
    )
