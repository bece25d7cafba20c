"""Which faults of a graph with a cache show while it generates, on models of several kinds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import POSITIONS, VOCABULARY, make_model
from transformers import GenerationConfig, PreTrainedModel

from mixout_export.checkpoint.interface import ModelInterface, describe_interface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.errors import CheckpointError
from mixout_export.export.document import write_graph
from mixout_export.export.generation import export_cached_graph
from mixout_export.parity.compare import TOLERANCES
from mixout_export.parity.decisions import DATA_BATCH
from mixout_export.parity.decoding import (
    continue_prompts,
    make_prompts,
    read_with_cache,
    sliding_window,
)
from mixout_export.parity.generation import GenerationParity, compare_generation
from mixout_export.runners.onnx_runner import CachedGraph, OnnxRunner
from mixout_export.tasks import TASKS

WINDOW = 16
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "mistral": {"sliding_window": WINDOW},  # keeps the latest keys only, where left alone
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},  # limits past + new tokens
    "bart": {},  # counts positions itself, padding included
}


def causal(kind: str, **settings: Any) -> PreTrainedModel:
    head = "LMHeadModel" if kind == "gpt2" else "ForCausalLM"
    return make_model(kind, head, **{**KINDS[kind], **settings})


def interface_of(model: PreTrainedModel) -> ModelInterface:
    return describe_interface(model, TASKS["causal-lm"])


def graph_of(model: PreTrainedModel, folder: Path) -> CachedGraph:
    graph = export_cached_graph(model, interface_of(model))
    return CachedGraph(OnnxRunner(write_graph(graph, folder)[0]))


def generated(model: PreTrainedModel, graph: CachedGraph, **options: Any) -> GenerationParity:
    return compare_generation(
        model, interface_of(model), plain=None, cached=graph, tolerance=TOLERANCES["fp32"],
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module", params=list(KINDS))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, CachedGraph]:
    model = causal(request.param)
    return model, graph_of(model, tmp_path_factory.mktemp(request.param))


def test_every_token_is_the_same(pair: tuple[PreTrainedModel, CachedGraph]) -> None:
    found = generated(*pair)
    assert found.holds
    assert found.with_cache is not None
    assert found.without_cache is None
    assert (found.with_cache.decisions, found.with_cache.flips) == (5 * 16 + 4, 0)
    assert found.longest == POSITIONS
    assert found.beyond_window


class Forgetful(CachedGraph):
    """Keeps nothing of what it has read."""

    def extend(
        self, inputs: Mapping[str, Any], cache: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        new = inputs["input_ids"].shape[1]
        last = {**inputs, "attention_mask": inputs["attention_mask"][:, -new:]}
        outputs, _ = super().extend(last, self.empty(len(inputs["input_ids"])))
        return outputs, dict(cache)


class Unaligned(CachedGraph):
    """Counts padding as positions."""

    def extend(
        self, inputs: Mapping[str, Any], cache: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        rows, end = inputs["attention_mask"].shape
        counted = np.broadcast_to(np.arange(end), (rows, end))
        new = inputs["input_ids"].shape[1]
        return super().extend({**inputs, "position_ids": counted[:, end - new :].copy()}, cache)


class Unmasked(CachedGraph):
    """Attends to padding."""

    def extend(
        self, inputs: Mapping[str, Any], cache: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return super().extend(
            {**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])}, cache
        )


@pytest.mark.parametrize("fault", [Forgetful, Unaligned, Unmasked])
@pytest.mark.parametrize("pair", ["gpt2"], indirect=True)
def test_a_fault_of_the_cache_the_positions_or_the_mask_shows(
    fault: type[CachedGraph], pair: tuple[PreTrainedModel, CachedGraph]
) -> None:
    model, graph = pair
    found = generated(model, fault(OnnxRunner(graph.path)))
    assert not found.holds
    assert found.tie_margins == ()


@pytest.mark.parametrize("pair", ["mistral"], indirect=True)
@pytest.mark.parametrize("window", [WINDOW + 1, None])
def test_a_graph_with_another_window_is_found_out(
    window: int | None, pair: tuple[PreTrainedModel, CachedGraph]
) -> None:
    assert sliding_window(pair[0]) == WINDOW
    found = generated(causal("mistral", sliding_window=window), pair[1])
    assert found.window == window
    assert found.beyond_window
    assert not found.holds


def test_prompts_go_beyond_a_window_but_not_beyond_the_limit() -> None:
    interface = interface_of(causal("mistral"))
    for limit, window, longest in ((None, 200, 208), (150, 200, 146), (None, 4096, 100)):
        limited = ModelInterface(**{**vars(interface), "sequence_limit": limit})
        prompts = {made.name: made for made in make_prompts(limited, window=window)}
        assert prompts["long prompt"].ids.shape == (1, longest)
        assert prompts["long prompt"].parts == (longest * 2 // 3, longest)


@pytest.mark.parametrize("limit", [2, 5, 8])
def test_prompts_fit_a_short_model(limit: int) -> None:
    interface = interface_of(causal("gpt2"))
    limited = ModelInterface(**{**vars(interface), "sequence_limit": limit})
    for prompts in make_prompts(limited):
        assert prompts.new >= 1
        assert 1 < prompts.ids.shape[1] + prompts.new <= limit


def test_the_users_texts_are_continued(pair: tuple[PreTrainedModel, CachedGraph]) -> None:
    ids = np.arange(5, 125).reshape(3, 40)
    mask = np.ones_like(ids)
    mask[1, 7:] = mask[2, :] = 0
    texts = Batch(DATA_BATCH, {"input_ids": ids, "attention_mask": mask})
    found = generated(*pair, examples=[texts])
    assert found.holds
    assert found.with_cache is not None
    assert found.with_cache.by_batch[DATA_BATCH].decisions == 2 * 16  # one of the three is empty
    *_, prompts = make_prompts(interface_of(pair[0]), examples=[texts])
    assert prompts.mask.sum(axis=1).tolist() == [32, 7]
    assert prompts.ids[1, -7:].tolist() == ids[1, :7].tolist()


def test_what_a_folder_asks_of_generate_is_of_no_account(
    pair: tuple[PreTrainedModel, CachedGraph],
) -> None:
    model, graph = pair
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=3.0, num_beams=3, repetition_penalty=5.0, max_length=3,
        eos_token_id=list(range(len(VOCABULARY))), cache_implementation="static",
    )  # fmt: skip
    try:
        assert generated(model, graph).holds
        assert model.generation_config.num_beams == 3
    finally:
        model.generation_config = own


def test_a_model_that_cannot_generate_is_one_sentence() -> None:
    model = make_model("bert", "ForMaskedLM")
    first = next(make_prompts(interface_of(model)))
    with pytest.raises(CheckpointError, match=r"^BertForMaskedLM: does not generate from prompts"):
        continue_prompts(model, first, pad=0)


def test_reading_in_parts_is_reading_at_once(pair: tuple[PreTrainedModel, CachedGraph]) -> None:
    model, graph = pair
    prompts = next(made for made in make_prompts(interface_of(model)) if made.name == "long prompt")
    text = continue_prompts(model, prompts, pad=0)
    width = prompts.ids.shape[1]
    for parts in ((width,), (1, 2, width), tuple(range(1, width + 1))):
        other = type(prompts)(**{**vars(prompts), "parts": parts})
        logits = read_with_cache(graph, type(text)(**{**vars(text), "prompts": other}))
        np.testing.assert_allclose(logits, text.logits, rtol=1e-4, atol=1e-5)
