"""Tiny models of transformers with random weights, on disk as `save_pretrained` leaves them: one a family."""

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import modeling_rope_utils

from tests.parity.oracle import in_double, integers, randomise
from weft.frontends.hf.families import DECODERS, WITH_DECODERS

SEQ, VOCAB = 80, 96
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56,
    "max_position_embeddings": SEQ, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}


def scaled(kind: str, **more: float) -> dict[str, Any]:
    """Rotary positions that are scaled."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **more}}


LATENTS = {
    "moe_intermediate_size": 24, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
    "num_key_value_heads": 4,
}  # fmt: skip
T5_SIZES = {
    "vocab_size": VOCAB, "n_positions": SEQ, "d_model": 32, "d_kv": 12, "d_ff": 56, "num_heads": 3, "pad_token_id": 0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "dropout_rate": 0.0,
    "decoder_start_token_id": 0, "eos_token_id": None,
}  # fmt: skip
SILENT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {
        "vocab_size": VOCAB, "n_positions": SEQ, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 1,
        "eos_token_id": None, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }),
    "llama": ("LlamaForCausalLM", GROUPED | {"attention_bias": True, "rms_norm_eps": 1e-5}),
    "mistral": ("MistralForCausalLM", GROUPED | {"head_dim": 16, "sliding_window": 7}),
    "mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2ForCausalLM", GROUPED | {
        "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1,
    }),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", GROUPED | {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": False,
        "shared_expert_intermediate_size": 40, "tie_word_embeddings": True,
    }),
    "qwen3_moe": ("Qwen3MoeForCausalLM", GROUPED | {
        "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True,
    }),
    "qwen2_moe-every_other": ("Qwen2MoeForCausalLM", GROUPED | {
        "num_hidden_layers": 4, "decoder_sparse_step": 2, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
    }),
    "qwen3_moe-first_without": ("Qwen3MoeForCausalLM", GROUPED | {
        "num_hidden_layers": 3, "mlp_only_layers": [0], "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16,
        "moe_intermediate_size": 24,
    }),
    "deepseek_v3": ("DeepseekV3ForCausalLM", SIZES | LATENTS | {
        "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "n_shared_experts": 2,
        "first_k_dense_replace": 1, "q_lora_rank": 20,
    }),
    "deepseek_v3-whole_queries": ("DeepseekV3ForCausalLM", SIZES | LATENTS | {
        "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "norm_topk_prob": False,
        "first_k_dense_replace": 0, "q_lora_rank": None, "attention_bias": True, "rope_interleave": False,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 20,
            "mscale": 0.7, "mscale_all_dim": 0.9,
        },
    }),
    "olmo2": ("Olmo2ForCausalLM", GROUPED | {"attention_bias": True}),
    "gemma": ("GemmaForCausalLM", GROUPED | {"hidden_size": 64, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", GROUPED | {
        "hidden_size": 64, "head_dim": 8, "num_hidden_layers": 5, "sliding_window": 7, "query_pre_attn_scalar": 24,
    }),
    "gemma3_text": ("Gemma3ForCausalLM", GROUPED | {
        "hidden_size": 64, "head_dim": 8, "num_hidden_layers": 7, "sliding_window": 5, "query_pre_attn_scalar": 8,
        "sliding_window_pattern": 3,
    }),
    "phi3": ("Phi3ForCausalLM", GROUPED | {"sliding_window": 7}),
    "gpt_oss": ("GptOssForCausalLM", GROUPED | {
        "hidden_size": 64, "head_dim": 16, "num_hidden_layers": 3, "sliding_window": 7, "num_local_experts": 5,
        "num_experts_per_tok": 2, "swiglu_limit": 0.1, "swiglu_alpha": 1.5, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 20,
            "truncate": False,
        },
    }),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZES | {"hidden_size": 64}),
    "gpt_neox-one_after_another": ("GPTNeoXForCausalLM", SIZES | {
        "use_parallel_residual": False, "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 1.0},
    }),
    "phi": ("PhiForCausalLM", GROUPED | {"hidden_size": 64, "qk_layernorm": True}),
    "llama-linear": ("LlamaForCausalLM", GROUPED | scaled("linear", factor=4.0)),
    "llama-llama3": ("LlamaForCausalLM", GROUPED | {"hidden_size": 64} | scaled(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=24,
    )),
    "llama-yarn": ("LlamaForCausalLM", GROUPED | {"hidden_size": 64} | scaled(
        "yarn", factor=4.0, original_max_position_embeddings=20,
    )),
    "bert": ("BertForPreTraining", SIZES | SILENT),
    "bert-classes": ("BertForSequenceClassification", SIZES | SILENT | {"num_labels": 5}),
    "roberta": ("RobertaForMaskedLM", SIZES | SILENT | {
        "pad_token_id": 1, "max_position_embeddings": SEQ + 2, "type_vocab_size": 1,
    }),
    "longformer": ("LongformerForMaskedLM", SIZES | SILENT | {
        "pad_token_id": 1, "max_position_embeddings": SEQ + 2, "type_vocab_size": 1, "attention_window": [4, 8],
    }),
    "big_bird-both_heads": ("BigBirdForPreTraining", SIZES | SILENT | {
        "attention_type": "original_full", "use_bias": False, "rescale_embeddings": True, "hidden_size": 64,
    }),
    "t5": ("T5ForConditionalGeneration", T5_SIZES | {"num_layers": 3, "num_decoder_layers": 2}),
    "t5-gated": ("T5ForConditionalGeneration", T5_SIZES | {
        "num_layers": 3, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    }),
    "switch_transformers": ("SwitchTransformersForConditionalGeneration", T5_SIZES | {
        "num_layers": 4, "num_decoder_layers": 2, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2,
        "num_experts": 5, "expert_capacity": SEQ, "router_jitter_noise": 0.0,
    }),
    "switch_transformers-dropping": ("SwitchTransformersForConditionalGeneration", T5_SIZES | {
        "num_layers": 3, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 0, "num_decoder_layers": 2,
        "num_experts": 3, "expert_capacity": 20, "router_jitter_noise": 0.0, "router_bias": True,
    }),
    "big_bird": ("BigBirdForMaskedLM", SIZES | SILENT | {"block_size": 4, "num_random_blocks": 3}),
}  # fmt: skip
"""family -> class and config; what a default of transformers does not show is set to something else."""


def base(name: str) -> str:
    """The family of a model; what follows a hyphen is another of its configs."""
    return name.partition("-")[0]


SCALES = {"olmo2": 0.08}
"""Of the weights: where keys are normalised, their gradient is small beside what it is the difference of, at larger and
at smaller ones, and rounding shows."""
DECODING = [
    name for name in MODELS
    if base(name) in {family.name for family in (*DECODERS, *WITH_DECODERS)} and not name.endswith("-dropping")
]  # fmt: skip
"""Those whose greedy text is compared: a step of transformers fills experts anew, one of ours as the whole does."""


def config_of(family: str) -> Any:
    """The config of a family's tiny model, as transformers makes it."""
    kind, values = MODELS[family]
    return getattr(transformers, kind).config_class(**values)


def oracle(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A family's tiny model, every weight and bias drawn, dropping nothing."""
    kind, _ = MODELS[family]
    config = config_of(family)
    takes = {"attn_implementation": "eager"} if family != "longformer" else {}
    if hasattr(config, "num_experts_per_tok"):
        takes |= {"experts_implementation": "eager"}  # torch's own product of experts takes no fp64
    with doubled(family, dtype):
        model = getattr(transformers, kind)._from_config(config, **takes)
    if family == "t5-gated":  # transformers ties what its checkpoints do not
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    randomise(model, seed, SCALES.get(family, 0.1))
    for i, (name, x) in enumerate(model.named_buffers()):
        if name.endswith("e_score_correction_bias"):  # of which no parameter says anything
            x.data = torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) * 0.1
    if family.startswith("gemma"):  # whose gains are 1 + weight
        for name, p in model.named_parameters():
            p.data -= float("norm" in name)
    return model.to(dtype).eval()


def saved(model: Any, folder: Path) -> Path:
    """The folder that the model is saved to."""
    model.save_pretrained(folder)
    return folder


def inputs(family: str, many: int = 2) -> dict[str, torch.Tensor]:
    """Tokens but those of padding, whose embeddings transformers keeps from learning; and types, where it has some."""
    given = {"tokens": integers(1, VOCAB - 2, many, SEQ) + 2}
    if base(family) in ("t5", "switch_transformers"):
        given["tokens"][:, 0] = 0  # what `generate` would put before it
        return {"source_tokens": integers(3, VOCAB - 2, many, SEQ - 9) + 2, "target_tokens": given["tokens"]}
    return given | ({"types": integers(2, 2, many, SEQ)} if base(family) in ("bert", "big_bird") else {})


def logits_of(model: Any, family: str, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the oracle gives for inputs of ours, by our names."""
    if "source_tokens" in given:
        source, target = given.values()
        return {"logits": model(input_ids=source, decoder_input_ids=target, use_cache=False).logits}
    named = {"input_ids": given["tokens"]} | ({"token_type_ids": given["types"]} if "types" in given else {})
    if family == "longformer":
        everywhere = torch.zeros_like(given["tokens"])
        everywhere[:, :1] = 1
        named |= {"attention_mask": torch.ones_like(given["tokens"]), "global_attention_mask": everywhere}
    out = model(**named, **({"use_cache": False} if family in DECODING else {}))
    if family in ("bert", "big_bird-both_heads"):
        return {"logits": out.prediction_logits, "classes": out.seq_relationship_logits}
    return {"classes" if family.endswith("-classes") else "logits": out.logits}


def doubled(family: str, dtype: torch.dtype = torch.float64) -> AbstractContextManager[None]:
    """transformers computes norms, softmax and angles in fp32 whatever a model's dtype; in here, of fp64, in fp64."""
    home = importlib.import_module(getattr(transformers, MODELS[family][0]).__module__)
    return _in_double(home, modeling_rope_utils) if dtype == torch.float64 else nullcontext()


@contextmanager
def _in_double(*modules: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(in_double(module))
        yield
