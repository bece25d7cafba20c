import copy

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, make_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from mixout_export import (
    MixoutConfig,
    MixoutConv1D,
    MixoutLinear,
    collapse_mixout,
    inject_mixout,
)
from mixout_export.errors import ArgumentError, MixoutError, TargetError
from mixout_export.surgery.injection import attach_mixout, mixout_layers

CLASSIFIER = "ForSequenceClassification"


def mixed(model: nn.Module, targets: str = "all-linear", exclude: str | None = None) -> set[str]:
    config = MixoutConfig(target_modules=targets, exclude_modules=exclude)
    return set(inject_mixout(model, config).replaced)


def linear_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if type(module) in (nn.Linear, Conv1D)}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.subquery = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.query(x) + self.subquery(x))


# Targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_all_linear_is_the_body_and_never_the_head(kind: str) -> None:
    model = make_model(kind, CLASSIFIER)
    body = {f"{model.base_model_prefix}.{name}" for name in linear_names(model.base_model)}
    head = linear_names(model) - body
    assert len(body) >= 6
    assert head
    report = inject_mixout(model, MixoutConfig())
    assert set(report.replaced) == body == set(mixout_layers(model))
    weights = dict(model.named_parameters())
    assert report.parameters == sum(weights[f"{name}.weight"].numel() for name in body)


def test_all_linear_of_a_headless_model_and_of_any_module() -> None:
    model = make_model("bert")
    names = linear_names(model)
    assert mixed(model) == names
    assert mixed(nn.Sequential(Block(), nn.Linear(4, 2))) == {"0.query", "0.subquery", "1"}
    assert mixed(nn.Linear(2, 2)) == {""}


def test_suffixes_match_whole_name_parts() -> None:
    assert mixed(nn.Sequential(Block()), "query") == {"0.query"}
    assert mixed(nn.Sequential(Block(), Block()), "1.query,0.subquery") == {"1.query", "0.subquery"}


def test_a_sequence_of_suffixes_is_a_list() -> None:
    config = MixoutConfig(target_modules=["query", "subquery"])  # type: ignore[arg-type]
    assert config.target_modules == "query,subquery"
    assert len(inject_mixout(nn.Sequential(Block()), config).replaced) == 2


def test_a_regex_must_match_the_whole_name() -> None:
    assert mixed(nn.Sequential(Block()), r".*query") == {"0.query", "0.subquery"}
    assert mixed(nn.Sequential(Block()), r"\d+\.query") == {"0.query"}
    with pytest.raises(TargetError, match="matches no module"):
        mixed(nn.Sequential(Block()), r"(query)")


def test_a_regex_skips_what_cannot_be_mixed() -> None:
    assert mixed(nn.Sequential(Block()), r"0\..*") == {"0.query", "0.subquery"}
    with pytest.raises(TargetError, match="selects nothing to mix in Sequential"):
        mixed(nn.Sequential(Block()), r"0\.no.*")


def test_a_suffix_that_names_what_cannot_be_mixed_is_an_error() -> None:
    with pytest.raises(TargetError, match=r"'0\.norm' is a LayerNorm, which cannot be mixed"):
        mixed(nn.Sequential(Block()), "query,norm")


def test_exclusions_leave_a_module_and_its_children_alone() -> None:
    assert mixed(nn.Sequential(Block(), Block()), exclude="0") == {"1.query", "1.subquery"}
    assert mixed(nn.Sequential(Block()), exclude=r".*\.sub.*") == {"0.query"}
    with pytest.raises(TargetError, match="exclude_modules: 'queri' matches no module"):
        mixed(nn.Sequential(Block()), exclude="queri")
    with pytest.raises(TargetError, match="selects nothing"):
        mixed(nn.Sequential(Block()), "query", exclude="query")


def test_nothing_matched_lists_near_misses() -> None:
    with pytest.raises(TargetError, match=r"'qeury' matches no module.*similar names: query"):
        mixed(make_model("bert"), "qeury")
    with pytest.raises(TargetError, match="has no module that can be mixed"):
        mixed(nn.Sequential(nn.LayerNorm(2)))


def test_a_partly_unmatched_list_is_an_error() -> None:
    model = nn.Sequential(Block())
    with pytest.raises(TargetError, match="'value' matches no module"):
        mixed(model, "query,value")
    assert not mixout_layers(model)


@pytest.mark.parametrize("pattern", ["(", "query)", "[a", "*"])
def test_a_regex_that_does_not_compile_is_refused(pattern: str) -> None:
    with pytest.raises(TargetError, match=r"target_modules: .* is not a valid regular expression"):
        MixoutConfig(target_modules=pattern)
    with pytest.raises(TargetError, match=r"exclude_modules: .* is not a valid regular expression"):
        MixoutConfig(exclude_modules=pattern)


@pytest.mark.parametrize("pattern", ["", " ", ",", " , "])
def test_an_empty_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(TargetError, match="is empty"):
        MixoutConfig(target_modules=pattern)


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(ArgumentError, match="p: got 1"):
        MixoutConfig(p=1)
    with pytest.raises(ArgumentError, match="granularity: got 'both'"):
        MixoutConfig(granularity="both")  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="expected a string or a sequence of strings"):
        MixoutConfig(target_modules=[1])  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="expected a string or a sequence of strings"):
        MixoutConfig(target_modules=7)  # type: ignore[arg-type]


def test_a_target_error_exits_1_and_another_bad_argument_2() -> None:
    assert (TargetError.exit_code, ArgumentError.exit_code, MixoutError.exit_code) == (1, 2, 1)
    assert issubclass(TargetError, ValueError)


# Protection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "head", "suffix", "full"),
    [
        ("roberta", CLASSIFIER, "dense", "classifier.dense"),
        ("bert", "ForMaskedLM", "dense", "cls.predictions.transform.dense"),
    ],
)
def test_a_head_is_mixed_only_when_named_exactly(kind, head, suffix, full) -> None:
    model = make_model(kind, head)
    report = inject_mixout(copy.deepcopy(model), MixoutConfig(target_modules=suffix))
    assert report.skipped[full] == "belongs to the head"
    assert full not in report.replaced
    assert mixed(copy.deepcopy(model), full) == {full}
    assert mixed(copy.deepcopy(model), full.replace(".", r"\.")) == {full}
    with pytest.raises(TargetError, match="belongs to the head"):
        mixed(model, full[:-1] + "[e]")  # the same module, by a pattern that is not its name


def test_output_embeddings_and_tied_weights_are_left_alone() -> None:
    tied = make_model("gpt2", "LMHeadModel")
    report = inject_mixout(tied, MixoutConfig(target_modules=r".*(lm_head|c_fc)"))
    assert "shared by transformer.wte, lm_head" in report.skipped["lm_head"]
    assert tied.lm_head.weight is tied.transformer.wte.weight
    untied = make_model("llama", "ForCausalLM", tie_word_embeddings=False)
    report = inject_mixout(untied, MixoutConfig(target_modules=r".*(lm_head|q_proj)"))
    assert report.skipped == {"lm_head": "is the output embedding"}
    assert mixed(make_model("llama", "ForCausalLM", tie_word_embeddings=False), "lm_head") == {
        "lm_head"
    }


def test_a_tied_weight_in_a_plain_module_is_left_alone_and_reported() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    report = inject_mixout(model)
    assert report.replaced == ("2",)
    assert set(report.skipped) == {"0", "1"}
    assert model[1].weight is model[0].weight
    collapse_mixout(model)
    assert mixed(model, "1,2") == {"1", "2"}
    assert model[1].weight is model[0].weight


def test_modules_without_a_pretrained_weight_are_left_alone() -> None:
    model = nn.Sequential(Block())
    report = inject_mixout(model, fresh=["0.query"])
    assert report.replaced == ("0.subquery",)
    assert report.skipped == {"0.query": "has no pretrained weight"}


# What is replaced ---------------------------------------------------------------------------------


def test_a_shared_module_is_replaced_once() -> None:
    model = make_model("albert", CLASSIFIER)
    report = inject_mixout(model)
    assert len(report.replaced) == len(set(report.replaced)) == 8
    shared = Block()
    twice = nn.Sequential(shared, shared)
    assert mixed(twice) == {"0.query", "0.subquery"}
    assert twice[0].query is twice[1].query
    layer = nn.Linear(2, 2)
    assert mixed(nn.ModuleList([layer, layer]), "1") == {"0"}


def test_a_shared_module_draws_at_each_call() -> None:
    model = make_model("albert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    inject_mixout(model)
    model.train()
    query = model.get_submodule("encoder.albert_layer_groups.0.albert_layers.0.attention.query")
    draws = []
    query.mixed_weight = lambda: draws.append(MixoutLinear.mixed_weight(query)) or draws[-1]
    query.weight.data.add_(1.0)
    query.weight.requires_grad_(False)  # then the formula is spelled out
    model(torch.tensor([[5, 6, 7]]))
    assert len(draws) == 2
    assert not torch.equal(*draws)


def test_classes_by_exact_type() -> None:
    gpt2 = make_model("gpt2")
    inject_mixout(gpt2)
    assert type(gpt2.h[0].mlp.c_fc) is MixoutConv1D

    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Special(2, 2))
    assert mixed(model) == {"0"}
    assert type(model[0]) is MixoutLinear
    assert type(model[1]) is Special


def test_attention_that_reads_a_projections_weight_is_left_alone() -> None:
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=8)
    kind = type(model.self_attn.out_proj)
    assert kind is not nn.Linear
    assert mixed(model) == {"linear1", "linear2"}
    assert type(model.self_attn.out_proj) is kind


def test_mode_dtype_gradients_hooks_and_identity_are_kept() -> None:
    model = nn.Sequential(Block(), nn.Linear(4, 4)).to(torch.bfloat16)
    layer = model[1].eval()
    layer.weight.requires_grad_(False)
    calls = []
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    weight, bias, keys = layer.weight, layer.bias, list(model.state_dict())
    inject_mixout(model)
    assert model[1] is layer
    assert (model[1].weight is weight, model[1].bias is bias) == (True, True)
    assert (layer.training, model[0].query.training) == (False, True)
    assert not layer.weight.requires_grad
    assert layer.pretrained_weight.dtype == torch.bfloat16
    model(torch.ones(1, 4, dtype=torch.bfloat16))
    assert calls == ["before", "forward"]
    assert [k for k in model.state_dict() if "pretrained" not in k] == keys


def test_injection_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Block()
    inject_mixout(model)
    assert model.query.pretrained_weight.device.type == "meta"


def test_a_replaced_forward_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].forward = lambda x: x
    with pytest.raises(TargetError, match="forward replaced on the instance"):
        inject_mixout(model)


def test_p_and_granularity_reach_the_layers() -> None:
    model = nn.Sequential(Block())
    inject_mixout(model, MixoutConfig(p=0.25, granularity="element"))
    assert {(m.p, m.granularity) for m in mixout_layers(model).values()} == {(0.25, "element")}


def test_a_second_injection_is_refused_and_anchors_stay() -> None:
    model = nn.Sequential(Block())
    inject_mixout(model, MixoutConfig(target_modules="query"))
    anchor = model[0].query.pretrained_weight.clone()
    with torch.no_grad():
        model[0].query.weight.add_(1.0)
    for targets in ("all-linear", "subquery"):
        with pytest.raises(ArgumentError, match=r"'0\.query' has mixout already"):
            inject_mixout(model, MixoutConfig(target_modules=targets))
    assert torch.equal(model[0].query.pretrained_weight, anchor)


def test_attaching_is_all_or_nothing() -> None:
    model = nn.Sequential(Block())
    with pytest.raises(ArgumentError, match=r"names: Sequential has no module '0\.value'"):
        attach_mixout(model, ["0.query", "0.value"], MixoutConfig())
    assert not mixout_layers(model)
    with pytest.raises(ArgumentError, match="got LayerNorm"):
        attach_mixout(model, ["0.query", "0.norm"], MixoutConfig())
    assert not mixout_layers(model)
    anchors = {"0.query": torch.zeros(4, 4), "0.subquery": torch.zeros(3, 4)}
    with pytest.raises(ArgumentError, match="got shape"):
        attach_mixout(model, list(anchors), MixoutConfig(), anchors)
    assert not mixout_layers(model)


# The model as a whole -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("granularity", ["neuron", "element"])
def test_evaluation_and_collapse_change_no_bit(kind: str, granularity: str) -> None:
    model = make_model(kind, CLASSIFIER)
    inputs = {
        "input_ids": torch.randint(5, 100, (3, 9)),
        "attention_mask": torch.ones(3, 9, dtype=torch.int64),
    }
    plain = model(**inputs).logits
    state = copy.deepcopy(model.state_dict())
    inject_mixout(model, MixoutConfig(granularity=granularity))
    assert torch.equal(model(**inputs).logits, plain)
    with torch.no_grad():
        for parameter in model.base_model.parameters():
            parameter.mul_(1.5)
    model.train()
    loss = model(**inputs, labels=torch.tensor([0, 1, 0])).loss
    loss.backward()
    layers = mixout_layers(model)
    assert all(layer.weight.grad.abs().sum() > 0 for layer in layers.values())
    moved = model.eval()(**inputs).logits
    parameters = dict(model.named_parameters())
    collapse_mixout(model)
    assert torch.equal(model(**inputs).logits, moved)
    assert model.state_dict().keys() == state.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())


def test_training_forward_depends_on_the_seed_only() -> None:
    model = make_model("bert", CLASSIFIER)
    inject_mixout(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    model.train()
    ids = torch.randint(5, 100, (2, 9))

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(ids).logits

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_models_own_gradient_checkpointing_keeps_the_gradient(use_reentrant: bool) -> None:
    model = make_model("bert", CLASSIFIER)
    inject_mixout(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    model.train()
    ids, labels = torch.randint(5, 100, (2, 9)), torch.tensor([0, 1])

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(3)
        model(ids, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    again = gradients()
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_collapse_leaves_nothing_behind() -> None:
    model = make_model("bert", CLASSIFIER)
    untouched = copy.deepcopy(model)
    report = inject_mixout(model, MixoutConfig(p=0.3))
    assert model.config.mixout["p"] == 0.3
    assert model.config.mixout["modules"] == list(report.replaced)
    assert collapse_mixout(model) == report.replaced
    assert vars(model).keys() == vars(untouched).keys()
    assert model.config.to_dict() == untouched.config.to_dict()
    assert dict(model.named_buffers()).keys() == dict(untouched.named_buffers()).keys()
    for (_, module), (_, reference) in zip(
        model.named_modules(), untouched.named_modules(), strict=True
    ):
        assert type(module) is type(reference)
        assert vars(module).keys() == vars(reference).keys()


def test_collapse_of_a_plain_model_is_refused() -> None:
    model = nn.Sequential(Block())
    with pytest.raises(ArgumentError, match="holds no mixout layer"):
        collapse_mixout(model)
    inject_mixout(model)
    collapse_mixout(model)
    with pytest.raises(ArgumentError, match="holds no mixout layer"):
        collapse_mixout(model)


def test_the_list_for_ddp_keeps_other_peoples_entries() -> None:
    model = nn.Sequential(Block())
    model._ddp_params_and_buffers_to_ignore = ["0.other"]
    inject_mixout(model)
    assert set(model._ddp_params_and_buffers_to_ignore) == {
        "0.other",
        "0.query.pretrained_weight",
        "0.subquery.pretrained_weight",
    }
    collapse_mixout(model)
    assert model._ddp_params_and_buffers_to_ignore == ["0.other"]


def test_a_model_can_be_copied_whole() -> None:
    model = make_model("bert", CLASSIFIER)
    inject_mixout(model)
    twin = copy.deepcopy(model)
    collapse_mixout(twin)
    assert mixout_layers(model)
    assert not mixout_layers(twin)
    assert hasattr(model.config, "mixout")


def test_a_transformers_class_is_still_what_it_was() -> None:
    model = make_model("bert", CLASSIFIER)
    inject_mixout(model)
    assert isinstance(model, transformers.BertForSequenceClassification)
    assert all(isinstance(layer, nn.Linear) for layer in mixout_layers(model).values())


def test_a_tied_output_embedding_is_reported() -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9, n_positions=8)
    config.bos_token_id = config.eos_token_id = 0
    skipped = inject_mixout(transformers.GPT2LMHeadModel(config)).skipped
    assert skipped == {"lm_head": "has a tied weight, shared by transformer.wte, lm_head"}


def test_a_linear_layer_in_other_words_is_mixed_and_gets_its_own_class_back() -> None:
    config = transformers.FalconConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    model = transformers.FalconForSequenceClassification(config).eval()
    kinds = {name: type(module) for name, module in model.named_modules()}
    ids = torch.arange(1, 7).reshape(2, 3)
    before = model(ids).logits
    report = inject_mixout(model)
    assert len(report.replaced) == 4
    layer = mixout_layers(model)[report.replaced[0]]
    assert kinds[report.replaced[0]].__name__ == "FalconLinear"
    assert type(layer) is MixoutLinear
    assert torch.equal(model(ids).logits, before)
    with torch.no_grad():
        layer.weight.add_(1.0)
    x = torch.randn(2, layer.in_features)
    assert not torch.equal(layer.train()(x), layer(x))
    assert copy.deepcopy(layer).plain_class is kinds[report.replaced[0]]
    collapse_mixout(model)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert "plain_class" not in vars(layer)
