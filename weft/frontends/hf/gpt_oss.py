"""gpt-oss (Agarwal et al. 2025): attention with sinks, every other layer with a window, and experts with biases whose
gate and up are clamped. Published checkpoints hold the experts in four bits, which are read as bf16."""

from typing import Any

from weft.frontends.hf import llama
from weft.frontends.hf.config.family import Architecture, Spec, Values
from weft.frontends.hf.config.layers import FULL, PATTERNS, SLIDING, layer_types, stack
from weft.frontends.hf.config.options import ConfigOption, Unsaid, default, flag, layers, number, only, size
from weft.frontends.hf.config.rotary import options as rotary_options
from weft.frontends.hf.config.rotary import whole
from weft.frontends.hf.mixtral import BALANCE
from weft.frontends.hf.tensors.weights import WeightRow, same, stacked, turned

YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""The rotary positions of a config that says nothing of them."""


def _quantised(value: Any) -> None:
    """Nothing, or that the experts are in MXFP4: a checkpoint shows by itself which of its tensors are."""
    if value is not None and not (isinstance(value, dict) and value.get("quant_method") == "mxfp4"):
        raise Unsaid("W0104", "supported is mxfp4 alone", "save the weights unquantised: model.dequantize()")


ROTARY = rotary_options(150000.0)
OPTIONS = {k: o for k, o in llama.without_biases().items() if k != "hidden_act"} | {
    "vocab_size": size(201088),
    "hidden_size": size(2880),
    "intermediate_size": size(2880),
    "num_hidden_layers": layers(36),
    "num_attention_heads": size(64),
    "num_key_value_heads": default(size(None), 8),
    "head_dim": default(size(None), 64),
    "max_position_embeddings": size(131072),
    "rms_norm_eps": number(1e-5),
    "attention_bias": flag(True),
    "sliding_window": default(size(None), 128),
    "layer_types": layer_types(),
    "num_local_experts": size(128),
    "num_experts_per_tok": size(4),
    "swiglu_alpha": number(1.702),
    "swiglu_limit": number(7.0),
    "output_router_logits": only(False, BALANCE),
    "quantization_config": ConfigOption(_quantised, None),
    **ROTARY,
    "rope_parameters": default(ROTARY["rope_parameters"], YARN),
}


def spec(c: Values) -> Spec:
    c = {**c, "rope_parameters": c["rope_scaling"] or c["rope_parameters"]}
    kinds = c["layer_types"] or [FULL if i % 2 else SLIDING for i in range(c["num_hidden_layers"])]
    kinds = kinds if c["sliding_window"] else [FULL] * len(kinds)
    usual, stages, counted = stack(kinds, {kind: {"pattern": text} for kind, text in PATTERNS.items()}, "experts")
    window = c["sliding_window"] if SLIDING in kinds else None
    sizes = llama.sizes_of(c, **counted, experts=c["num_local_experts"], window=window)
    limit, alpha = whole(c["swiglu_limit"]), whole(c["swiglu_alpha"])
    gate = f"min(x, {limit})"
    blocks = {
        "attention": llama.attention(c, sizes, PATTERNS[usual], c["attention_bias"], sinks=True),
        "experts": {
            "kind": "moe", "top_k": c["num_experts_per_tok"], "capacity": "none", "gated": True,
            "activation": f"(min(max(up, -{limit}), {limit}) + 1)*{gate}*sigmoid({alpha}*{gate})",
            "bias": True, "logit_bias": True, "normalize": True, "aux_loss": 0,
        },
    }  # fmt: skip
    return llama.decoder("gpt_oss", "gpt-oss (Agarwal et al. 2025)", c, sizes, blocks, stack=stages)


ROWS: tuple[WeightRow, ...] = (
    *same("layers.{}.attention.sinks", "model.layers.{}.self_attn.sinks"),
    *same("layers.{}.experts_norm.weight", "model.layers.{}.post_attention_layernorm.weight"),
    *turned("layers.{}.experts.router.weight", "model.layers.{}.mlp.router.weight"),
    *same("layers.{}.experts.router.logit_bias", "model.layers.{}.mlp.router.bias"),
    *stacked("layers.{}.experts", ("gate", "up"), "model.layers.{}.mlp.experts.gate_up_proj"),
    *stacked("layers.{}.experts", ("down",), "model.layers.{}.mlp.experts.down_proj"),
)

GPT_OSS = llama.DECODER(
    name="gpt_oss",
    architectures={"GptOssForCausalLM": Architecture()},
    options=OPTIONS,
    spec=spec,
    rows=(*llama.ENDS, llama.NORMS[0], *llama.ATTENTION, *ROWS),
    # hidden_act is not read by transformers; two say again what others do
    ignored=frozenset({"hidden_act", "router_aux_loss_coef", "experts_per_token", "initial_context_length"}),
)
