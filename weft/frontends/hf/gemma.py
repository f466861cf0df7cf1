"""Gemma 1 to 3 (Gemma team 2024, 2025): gains of 1 + weight, embeddings times sqrt(width); from 2 on norms before and
after each sub-layer and layers with a window in turn, in 2 soft caps, in 3 norms of queries and keys."""

from __future__ import annotations

from typing import Any

from weft.frontends.hf import llama, qwen
from weft.frontends.hf.config.family import Architecture, Spec, Values, norm
from weft.frontends.hf.config.layers import FULL, PATTERNS, SLIDING, layer_types, stack
from weft.frontends.hf.config.options import ACTIVATIONS, ConfigOption, choice, flag, layers, number, only, size, whole
from weft.frontends.hf.config.rotary import nested, rotary, spelled, turns
from weft.frontends.hf.tensors.weights import WeightRow, same

TANH = ACTIVATIONS | {"gelu": "gelu_tanh"}
"""Configs of the first Gemma say gelu and mean its approximation, which transformers runs."""
BOTH_WAYS = "an encoder of Gemma's blocks is a spec with another pattern"


def options(**more: ConfigOption) -> dict[str, ConfigOption]:
    """Those that all three have."""
    return {k: o for k, o in llama.OPTIONS.items() if k not in ("mlp_bias", "hidden_act")} | {
        "vocab_size": size(256000),
        "head_dim": size(256),
        "max_position_embeddings": size(8192),
        "tie_word_embeddings": flag(True),
        "use_bidirectional_attention": only(None, BOTH_WAYS, False),
        **more,
    }


GEMMA_OPTIONS = options(
    hidden_size=size(3072),
    num_key_value_heads=size(16),
    intermediate_size=size(24576),
    num_hidden_layers=layers(28),
    num_attention_heads=size(16),
    hidden_act=choice(TANH, "gelu_pytorch_tanh"),
    hidden_activation=ConfigOption(lambda v: None if v is None else choice(TANH).read(v), None),
)
GEMMA2_OPTIONS = options(
    hidden_size=size(2304),
    num_key_value_heads=size(4),
    intermediate_size=size(9216),
    num_hidden_layers=layers(26),
    num_attention_heads=size(8),
    hidden_activation=choice(ACTIVATIONS, "gelu_pytorch_tanh"),
    query_pre_attn_scalar=number(256),
    sliding_window=ConfigOption(size(None).read, 4096),
    layer_types=layer_types(),
    final_logit_softcapping=ConfigOption(number(None).read, 30.0),
    attn_logit_softcapping=ConfigOption(number(None).read, 50.0),
)
GEMMA3_OPTIONS = GEMMA2_OPTIONS | {
    "vocab_size": size(262208),
    "max_position_embeddings": size(131072),
    "final_logit_softcapping": number(None),
    "attn_logit_softcapping": number(None),
    "sliding_window_pattern": whole(6),
    "rope_parameters": nested((FULL, SLIDING)),
    "rope_theta": number(1e6, least=1.0),
    "rope_local_base_freq": number(1e4, least=1.0),
}


def made(
    name: str, about: str, c: Values, kinds: list[str], turning: dict[str, Any], sandwich: bool, **more: Any
) -> Spec:
    """A decoder of these kinds of layers. turning: the rotary positions of each. more: keys of its attention."""
    rule = norm("rms_norm", c["rms_norm_eps"], offset=1)
    own = {kind: {"pattern": PATTERNS[kind], "rotary": turning[kind]} for kind in dict.fromkeys(kinds)}
    usual, stages, counted = stack(kinds, own)
    sizes = llama.sizes_of(c, **counted, window=c["sliding_window"] if SLIDING in kinds else None)
    blocks = {
        "attention": llama.attention(c, sizes, PATTERNS[usual], c["attention_bias"], rotary=turning[usual], **more),
        "feedforward": llama.feedforward(c),
    }
    sublayer = {"norm": rule, "residual": "pre"} | ({"output_norm": rule} if sandwich else {})
    head = {"tied": True} if c["tie_word_embeddings"] else {}
    head |= {"softcap": c["final_logit_softcapping"]} if c.get("final_logit_softcapping") else {}
    embed = {"scale": "sqrt(width)"}
    return llama.decoder(
        name, about, c, sizes, blocks, rule, embed=embed, sublayer=sublayer, stack=stages, head=head or None
    )


def scored(c: Values) -> dict[str, Any]:
    """The scale of scores and their soft cap."""
    scalar, cap = c["query_pre_attn_scalar"], c["attn_logit_softcapping"]
    found = {} if scalar == c["head_dim"] else {"scale": f"1/sqrt({scalar:g})"}
    return found | ({"score": f"{cap:g}*tanh(s/{cap:g})"} if cap else {})


def gemma(c: Values) -> Spec:
    c = {**c, "hidden_act": c["hidden_activation"] or c["hidden_act"], "sliding_window": None}
    kinds = [FULL] * c["num_hidden_layers"]
    return made("gemma", "Gemma (Gemma team 2024)", c, kinds, {FULL: rotary(c)}, sandwich=False)


def gemma2(c: Values) -> Spec:
    c = {**c, "hidden_act": c["hidden_activation"]}
    kinds = c["layer_types"] or [SLIDING if i % 2 == 0 else FULL for i in range(c["num_hidden_layers"])]
    kinds = kinds if c["sliding_window"] else [FULL] * len(kinds)
    turning: dict[str, Any] = dict.fromkeys((FULL, SLIDING), rotary(c))
    return made("gemma2", "Gemma 2 (Gemma team 2024)", c, kinds, turning, sandwich=True, **scored(c))


def gemma3(c: Values) -> Spec:
    c = {**c, "hidden_act": c["hidden_activation"]}
    every = c["sliding_window_pattern"] or 1
    kinds = c["layer_types"] or [SLIDING if (i + 1) % every else FULL for i in range(c["num_hidden_layers"])]
    kinds = kinds if c["sliding_window"] else [FULL] * len(kinds)
    more = scored(c) | {"qk_norm": norm("rms_norm", c["rms_norm_eps"], offset=1)}
    turning = {FULL: turned(c, FULL, c["rope_theta"]), SLIDING: turned(c, SLIDING, c["rope_local_base_freq"])}
    return made("gemma3_text", "Gemma 3 (Gemma team 2025)", c, kinds, turning, sandwich=True, **more)


def turned(c: Values, kind: str, base: float) -> Any:
    """The rotary positions of one kind of layers; of older configs, what is scaled is what sees all."""
    given = (c["rope_parameters"] or {}).get(kind) or (c["rope_scaling"] if kind == FULL else None)
    return spelled(turns({"rope_parameters": given, "rope_scaling": None, "rope_theta": base}), c["head_dim"])


SANDWICH: tuple[WeightRow, ...] = (
    llama.NORMS[0],
    *same("layers.{}.attention_output_norm.weight", "model.layers.{}.post_attention_layernorm.weight"),
    *same("layers.{}.feedforward_norm.weight", "model.layers.{}.pre_feedforward_layernorm.weight"),
    *same("layers.{}.feedforward_output_norm.weight", "model.layers.{}.post_feedforward_layernorm.weight"),
)

GEMMA = llama.DECODER(
    name="gemma",
    architectures={"GemmaForCausalLM": Architecture()},
    options=GEMMA_OPTIONS,
    spec=gemma,
    rows=llama.LLAMA.rows,
)
GEMMA2 = llama.DECODER(
    name="gemma2",
    architectures={"Gemma2ForCausalLM": Architecture()},
    options=GEMMA2_OPTIONS,
    spec=gemma2,
    rows=(*llama.ENDS, *SANDWICH, *llama.ATTENTION, *llama.FEEDFORWARD),
    ignored=frozenset({"hidden_act"}),  # the activation is `hidden_activation`
)
GEMMA3 = llama.DECODER(
    name="gemma3_text",
    architectures={"Gemma3ForCausalLM": Architecture()},
    options=GEMMA3_OPTIONS,
    spec=gemma3,
    rows=(*llama.ENDS, *SANDWICH, *llama.ATTENTION, *qwen.QK_NORMS, *llama.FEEDFORWARD),
    # layer_types stands beside the one; the activation is `hidden_activation`
    ignored=frozenset({"_sliding_window_pattern", "hidden_act"}),
)
