"""List the families, and the settings that make a tiny checkpoint of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.models.auto import modeling_auto

#: Configuration entry → its size in a tiny checkpoint. Smaller defaults are kept.
SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "entity_vocab_size", "shape_vocab_size"), 120),
    "pronunciation_vocab_size": 100,
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "d_latents"), 32
    ),
    **dict.fromkeys(
        ("input_embedding_size", "word_embed_proj_dim", "pooler_hidden_size", "entity_emb_size"), 32
    ),
    **dict.fromkeys(("prediction_head_size", "output_embedding_size", "true_hidden_size"), 32),
    "intra_bottleneck_size": 32,
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), 2
    ),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_self_attends_per_block"), 2),
    "max_window_layers": 1,
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4
    ),
    **dict.fromkeys(("decoder_attention_heads", "linear_num_value_heads", "index_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "kv_channels", "attention_head_size"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "rotary_dim"), 8),
    "qk_head_dim": 16,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "index_topk", "adapter_rank"), 16),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "dff", "hidden_dim", "ffn_dim", "ffn_hidden_size"), 48
    ),
    **dict.fromkeys(("d_inner", "encoder_ffn_dim", "decoder_ffn_dim", "feed_forward_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "n_group"), 2),
    **dict.fromkeys(("topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "max_2d_position_embeddings"), 66
    ),
    **dict.fromkeys(("sliding_window", "window_size", "local_attention", "attention_window"), 16),
    "original_max_position_embeddings": 66,
    **dict.fromkeys(("mamba_d_state", "mamba_dt_rank", "chunk_size"), 8),
    **dict.fromkeys(("local_attn_chunk_length", "lsh_attn_chunk_length", "num_latents"), 8),
    **dict.fromkeys(("prompt_length", "prompt_mid_dim"), 16),
    **dict.fromkeys(("image_size", "input_size"), 32),
    **dict.fromkeys(("patch_size", "num_patches"), 16),
    "mm_tokens_per_image": 4,
    "out_hidden_size": 32,
    "depth": 2,
    "pixel_shuffle_factor": 2,
    "query_pre_attn_scalar": 8,
    "entity_embedding_size": 32,
}

#: Family → settings that replace the sizes above, where those do not fit the configuration.
SETTINGS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "funnel": {"block_sizes": [1, 1, 1], "num_decoder_layers": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48},
    "mistral4": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 66,
        }
    },
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "hybrid"] * 2,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
    },
}

_ONES: dict[str, Any] = {"depths": [1, 1, 1, 1]}
_TWO_STAGES: dict[str, Any] = {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8}
_WINDOWS: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
    "patch_size": 4,
}
_PYRAMID: dict[str, Any] = {
    **_ONES,
    "hidden_sizes": [8, 16, 16, 32],
    "num_attention_heads": [1, 2, 2, 4],
}

#: The same for families that read images.
IMAGE_SETTINGS: dict[str, dict[str, Any]] = {
    "bit": {**_TWO_STAGES, "num_groups": 4},
    "convnext": {**_TWO_STAGES, "num_stages": 2},
    "convnextv2": {**_TWO_STAGES, "num_stages": 2},
    "cvt": {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3], "image_size": 32},
    "donut-swin": _WINDOWS,
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 48},
    "focalnet": {
        "embed_dim": 8,
        "hidden_sizes": [16, 16],
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
        "patch_size": 4,
    },
    "hgnet_v2": {
        **_ONES,
        "embedding_size": 8,
        "hidden_sizes": [16, 16, 16, 32],
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 16, 16, 16],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [16, 16, 16, 32],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
    },
    "hiera": {**_ONES, "embed_dim": 8, "image_size": [32, 32]},
    "levit": {
        "depths": [1, 1, 1],
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [2, 2, 2],
        "key_dim": [8, 8, 8],
        "image_size": 64,
    },
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": {
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 8, 16, 16, 24, 32],
        "image_size": 64,
        "patch_size": 2,
    },
    "mobilevitv2": {"width_multiplier": 0.25, "image_size": 64, "patch_size": 2},
    "poolformer": {**_ONES, "hidden_sizes": [8, 12, 16, 24]},
    "pp_lcnet": {"scale": 0.25, "class_expand": 32},
    "pvt": _PYRAMID,
    "pvt_v2": {**_PYRAMID, "image_size": 32},
    "regnet": {**_TWO_STAGES, "groups_width": 4},
    "resnet": _TWO_STAGES,
    "segformer": _PYRAMID,
    "swiftformer": {**_ONES, "embed_dims": [8, 16, 24, 32]},
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "textnet": {"hidden_sizes": [8, 8, 16, 16, 32], "image_size": [32, 32]},
}

#: Special token → id. These replace ids outside the tiny vocabulary, and a missing padding id.
SPECIAL_TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "mask_token_id": 3,
}


_TABLES: Mapping[str, Mapping[str, str | Sequence[str]]] = {
    "text-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "image-classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}


@dataclass(frozen=True)
class Family:
    """A kind of model that transformers has a classifier for.

    Attributes:
        name: The model type; with "-images" where a classifier of texts has the same.
        model_type: The model type.
        architecture: Class name of its classifier.
        task: The task, by its name in this package.
    """

    name: str
    model_type: str
    architecture: str
    task: str


def classifier_of(model_type: str, task: str) -> str:
    """Return the class name of a family's classifier, the first if there are several."""
    classes = _TABLES[task][model_type]
    return classes if isinstance(classes, str) else classes[0]


def families() -> dict[str, Family]:
    """Return name → family, for every classifier of texts or of images in transformers."""
    found: dict[str, Family] = {}
    for task, table in _TABLES.items():
        for model_type in table:
            name = f"{model_type}-images" if model_type in found else model_type
            found[name] = Family(name, model_type, classifier_of(model_type, task), task)
    return found
