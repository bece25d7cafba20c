import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import TinyCheckpoints, make_model
from onnx import numpy_helper
from repeats import mostly_repeats

from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.interface import describe_interface
from mixout_export.errors import ExportError
from mixout_export.export.generation import describe_cache
from mixout_export.parity.compare import Tolerance
from mixout_export.parity.generation import tie_margins
from mixout_export.runners.onnx_runner import OnnxRunner
from mixout_export.stages.onnx_export import OnnxResult, export_onnx
from mixout_export.stages.verify import verify_checkpoints
from mixout_export.tasks import TASKS

HEADS = {"gpt2": "LMHeadModel", "llama": "ForCausalLM"}


@pytest.fixture(scope="module", params=mostly_repeats(HEADS, "gpt2"))
def source(request: pytest.FixtureRequest, tiny: TinyCheckpoints) -> Path:
    return tiny.folder(request.param, HEADS[request.param])


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxResult:
    return export_onnx(source, tmp_path_factory.mktemp("graph") / "onnx")


def test_a_causal_language_model_gets_a_graph_with_a_cache(exported: OnnxResult) -> None:
    assert exported.cached_graph is not None
    graph = OnnxRunner(exported.cached_graph)
    assert graph.inputs[:3] == ("input_ids", "attention_mask", "position_ids")
    assert graph.inputs[3:5] == ("past_key_values.0.key", "past_key_values.0.value")
    assert graph.outputs[:3] == ("logits", "present.0.key", "present.0.value")
    assert graph.input_shapes["past_key_values.0.key"][2] == "past_sequence_length"
    assert graph.input_shapes["past_key_values.0.key"][0] == "batch_size"


def test_every_token_is_the_one_that_generate_gives(source: Path, exported: OnnxResult) -> None:
    result = verify_checkpoints(source, exported.path)
    found = result.generation
    assert result.holds
    assert found is not None
    assert found.with_cache is not None
    assert found.without_cache is not None
    assert (found.with_cache.flips, found.without_cache.flips) == (0, 0)
    assert found.tokens == found.with_cache.decisions == 5 * 16 + 4
    assert found.weights is not None
    assert found.weights.holds


def test_generate_itself_is_what_the_graph_is_held_against(
    source: Path, exported: OnnxResult
) -> None:
    model = open_checkpoint(source).model
    graph = OnnxRunner(exported.cached_graph or Path())
    ids = np.array([[7, 11, 13]])
    expected = model.generate(
        input_ids=torch.from_numpy(ids), do_sample=False, max_new_tokens=5,
        min_new_tokens=5, pad_token_id=0,
    ).numpy()  # fmt: skip
    past = {
        name: np.zeros((1, shape[1], 0, shape[3]), dtype=np.float32)
        for name, shape in graph.input_shapes.items()
        if name.startswith("past")
    }
    tokens, new = ids, ids
    for _ in range(5):
        mask = np.ones_like(tokens)
        positions = np.arange(tokens.shape[1])[None, -new.shape[1] :]
        outputs = graph.run(
            {"input_ids": new, "attention_mask": mask, "position_ids": positions, **past}
        )
        new = outputs.pop("logits")[:, -1:].argmax(axis=-1)
        past = {name.replace("present", "past_key_values"): v for name, v in outputs.items()}
        tokens = np.concatenate([tokens, new], axis=1)
    assert tokens.tolist() == expected.tolist()


def test_a_fault_in_the_cached_graph_alone_is_found(
    source: Path, exported: OnnxResult, tmp_path: Path
) -> None:
    broken = shutil.copytree(exported.path, tmp_path / "broken")
    path = broken / "model_with_past.onnx"
    graph = onnx.load(path)
    weight = max(graph.graph.initializer, key=lambda t: len(t.dims) * 10**6 + len(t.raw_data))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
    onnx.save(graph, path)
    result = verify_checkpoints(source, broken)
    assert not result.holds
    assert result.outputs[0].holds
    assert result.generation is not None
    assert result.generation.without_cache is not None
    assert result.generation.without_cache.holds
    assert result.generation.with_cache is not None
    assert not result.generation.with_cache.holds
    assert any("with a cache" in reason for reason in result.reasons())


def test_no_cache_leaves_the_plain_graph(source: Path, tmp_path: Path) -> None:
    result = export_onnx(source, tmp_path / "plain", cache=False)
    assert result.cached_graph is None
    assert result.parity is not None
    assert result.parity.generation is not None
    assert result.parity.generation.with_cache is None
    assert result.parity.generation.without_cache is not None


def test_a_model_without_a_cache_of_its_own_is_refused() -> None:
    model = make_model("bert", "ForMaskedLM")
    assert describe_interface(model, TASKS["masked-lm"]).outputs == ("logits",)
    with pytest.raises(ExportError, match="give --no-cache"):
        describe_cache(model)


def test_the_graph_with_a_cache_can_be_verified_by_itself(
    source: Path, exported: OnnxResult
) -> None:
    assert exported.cached_graph is not None
    result = verify_checkpoints(source, exported.cached_graph)
    assert result.holds, result.reasons()
    assert result.generation is not None
    assert result.generation.without_cache is None
    assert result.generation.with_cache is not None
    assert result.generation.with_cache.holds


def test_a_folder_as_optimum_writes_it_can_be_verified(
    source: Path, exported: OnnxResult, tmp_path: Path
) -> None:
    folder = tmp_path / "optimum"
    folder.mkdir()
    shutil.copy(exported.path / "config.json", folder)
    graph = onnx.load(exported.path / "model_with_past.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, folder / "model.onnx")
    result = verify_checkpoints(source, folder)
    assert result.holds, result.reasons()
    assert result.outputs[0].elements > 0
    assert result.generation is not None
    assert result.generation.with_cache is not None
    assert result.generation.with_cache.holds


def test_a_flip_is_a_tie_only_if_the_tolerance_explains_it() -> None:
    reference = np.array([[2.0, 1.0, 0.0], [1.0, 1.0 - 1e-5, 0.0], [1.0, 0.9, 1.0 - 1e-5]])
    candidate = np.array([[1.0, 2.0, 0.0], [1.0, 1.0 + 1e-6, 0.0], [0.9, 1.0, 0.9]])
    found = tie_margins(reference, candidate, Tolerance(atol=1e-5, rtol=0.0))
    assert found == [pytest.approx(1e-5)]  # the third has a tie too, but chose another token
    assert tie_margins(reference, candidate, Tolerance(atol=1e-6, rtol=0.0)) == []
    assert tie_margins(reference, candidate, Tolerance(atol=0.0, rtol=1e-5)) == found
    assert tie_margins(reference, candidate, None) == []
    assert len(tie_margins(reference, candidate, Tolerance(atol=0.5, rtol=0.0))) == 3
