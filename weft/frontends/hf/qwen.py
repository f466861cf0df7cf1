"""Qwen 2 (Yang et al. 2024): Llama with biases on queries, keys and values. Qwen 3 (Yang et al. 2025): norms of queries
and keys instead; and its experts, which drop no token."""

from typing import Any

from weft.frontends.hf import llama
from weft.frontends.hf.family import Architecture, ModelFamily, Spec, Values, norm
from weft.frontends.hf.layers import FULL, SLIDING, layer_types, stack
from weft.frontends.hf.mixtral import BALANCE
from weft.frontends.hf.options import ConfigOption, default, flag, layers, only, size, whole
from weft.frontends.hf.weights import WeightRow, same, turned

SHARED: dict[str, ConfigOption] = llama.without_biases() | {
    "vocab_size": size(151936),
    "intermediate_size": size(22016),
    "num_key_value_heads": default(size(None), 32),
    "max_position_embeddings": size(32768),
}
WINDOWS: dict[str, ConfigOption] = {
    "use_sliding_window": flag(False),
    "sliding_window": default(size(None), 4096),
    "max_window_layers": whole(28),
    "layer_types": layer_types(),
}
QWEN2_OPTIONS = SHARED | WINDOWS
QWEN3_OPTIONS = SHARED | WINDOWS | {"head_dim": size(128), "attention_bias": flag(False)}
MOE_OPTIONS = SHARED | {
    "hidden_size": size(2048),
    "intermediate_size": size(6144),
    "num_hidden_layers": layers(24),
    "num_key_value_heads": default(size(None), 4),
    "attention_bias": flag(False),
    "use_sliding_window": only(False, "say the window in the spec: pattern: causal and window(window)"),
    "moe_intermediate_size": size(768),
    "num_experts": size(None),
    "num_local_experts": size(None),  # what transformers 5 calls it
    "num_experts_per_tok": size(8),
    "norm_topk_prob": flag(False),
    "decoder_sparse_step": only(1, "layers without experts among those with are not imported"),
    "mlp_only_layers": only([], "layers without experts among those with are not imported", None),
    "output_router_logits": only(False, BALANCE),
}


def layered(name: str, about: str, c: Values, **more: Any) -> Spec:
    """A decoder of which some layers have a window. more: keys of its attention."""
    window = c["sliding_window"] if c["use_sliding_window"] else None
    first = c["max_window_layers"]
    kinds = c["layer_types"] or [SLIDING if window and i >= first else FULL for i in range(c["num_hidden_layers"])]
    kinds = kinds if window else [FULL] * len(kinds)
    return of_kinds(name, about, c, kinds, window, **more)


def of_kinds(name: str, about: str, c: Values, kinds: list[str], window: int | None, **more: Any) -> Spec:
    """A decoder whose layers are of these kinds: the commonest is the block's own, the others set its pattern."""
    patterns = {FULL: "causal", SLIDING: "causal and window(window)"}
    usual = max(dict.fromkeys(kinds), key=kinds.count)

    def layer(kind: str) -> list[Any]:
        own = {"block": "attention", "set": {"pattern": patterns[kind]}}
        return ["attention" if kind == usual else own, "feedforward"]

    stages, counted = stack(kinds, layer)
    sizes = llama.sizes_of(c, **counted, window=window if SLIDING in kinds else None)
    blocks = {"attention": llama.attention(c, sizes, patterns[usual], **more), "feedforward": llama.feedforward(c)}
    return llama.decoder(name, about, c, sizes, blocks, stack=stages)


def qk_norm(c: Values) -> Any:
    """A norm of each head by itself."""
    return norm("rms_norm", c["rms_norm_eps"])


def qwen2(c: Values) -> Spec:
    return layered("qwen2", "Qwen 2 (Yang et al. 2024)", c, biased=["query", "key", "value"])


def qwen3(c: Values) -> Spec:
    return layered("qwen3", "Qwen 3 (Yang et al. 2025)", c, biased=c["attention_bias"], qk_norm=qk_norm(c))


def qwen3_moe(c: Values) -> Spec:
    inner = {"intermediate_size": c["moe_intermediate_size"]}
    experts_of = c["num_local_experts"] or c["num_experts"] or 128
    sizes = llama.sizes_of({**c, **inner}, experts=experts_of)
    experts = {
        "kind": "moe", "top_k": c["num_experts_per_tok"], "capacity": "seq", "activation": c["hidden_act"],
        "gated": True, "normalize": c["norm_topk_prob"], "aux_loss": 0,
    }  # fmt: skip
    attention = llama.attention(c, sizes, biased=c["attention_bias"], qk_norm=qk_norm(c))
    blocks = {"attention": attention, "experts": experts}
    return llama.decoder("qwen3_moe", "Qwen 3 with experts (Yang et al. 2025)", c, sizes, blocks)


QK_NORMS: tuple[WeightRow, ...] = (
    *same("layers.{}.attention.query_norm.weight", "model.layers.{}.self_attn.q_norm.weight"),
    *same("layers.{}.attention.key_norm.weight", "model.layers.{}.self_attn.k_norm.weight"),
)
EXPERTS: tuple[WeightRow, ...] = (
    *same("layers.{}.experts_norm.weight", "model.layers.{}.post_attention_layernorm.weight"),
    *turned("layers.{}.experts.router.weight", "model.layers.{}.mlp.gate.weight"),
    *(
        row
        for part in ("gate", "up", "down")
        for row in turned(f"layers.{{}}.experts.{part}.weight", f"model.layers.{{}}.mlp.experts.*.{part}_proj.weight")
    ),
)

QWEN2 = ModelFamily(
    name="qwen2",
    architectures={"Qwen2ForCausalLM": Architecture()},
    options=QWEN2_OPTIONS,
    spec=qwen2,
    rows=llama.LLAMA.rows,
    prefix="model.",
    divides=llama.DIVIDES,
    tied=llama.TIED,
    unneeded=llama.UNNEEDED,
)
QWEN3 = ModelFamily(
    name="qwen3",
    architectures={"Qwen3ForCausalLM": Architecture()},
    options=QWEN3_OPTIONS,
    spec=qwen3,
    rows=(*llama.LLAMA.rows, *QK_NORMS),
    prefix="model.",
    divides=llama.DIVIDES,
    tied=llama.TIED,
    unneeded=llama.UNNEEDED,
)
QWEN3_MOE = ModelFamily(
    name="qwen3_moe",
    architectures={"Qwen3MoeForCausalLM": Architecture()},
    options=MOE_OPTIONS,
    spec=qwen3_moe,
    rows=(*llama.ENDS, llama.NORMS[0], *llama.ATTENTION, *QK_NORMS, *EXPERTS),
    prefix="model.",
    ignored=frozenset({"max_window_layers", "router_aux_loss_coef", "sliding_window"}),  # no window is used
    divides=llama.DIVIDES,
    tied=llama.TIED,
    unneeded=llama.UNNEEDED,
)
