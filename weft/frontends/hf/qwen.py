"""Qwen 2 (Yang et al. 2024): Llama with biases on queries, keys and values. Qwen 3 (Yang et al. 2025): norms of queries
and keys instead; and its experts, which drop no token."""

from typing import Any

from weft.frontends.hf import llama
from weft.frontends.hf.config.family import Architecture, Spec, Values, norm
from weft.frontends.hf.config.layers import FULL, PATTERNS, SLIDING, layer_types, numbers, stack, stages
from weft.frontends.hf.config.options import ConfigOption, default, flag, layers, only, size, whole
from weft.frontends.hf.mixtral import BALANCE
from weft.frontends.hf.tensors.weights import WeightRow, same, turned

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
SPARSE: dict[str, ConfigOption] = {
    "hidden_size": size(2048),
    "num_hidden_layers": layers(24),
    "num_experts": size(None),
    "num_local_experts": size(None),  # what transformers 5 calls it
    "norm_topk_prob": flag(False),
    "use_sliding_window": only(False, "say the window in the spec: pattern: causal and window(window)"),
    "decoder_sparse_step": size(1),
    "mlp_only_layers": numbers(),
    "output_router_logits": only(False, BALANCE),
}
QWEN2_MOE_OPTIONS = (
    SHARED
    | SPARSE
    | {
        "intermediate_size": size(5632),
        "num_attention_heads": size(16),
        "num_key_value_heads": default(size(None), 16),
        "moe_intermediate_size": size(1408),
        "shared_expert_intermediate_size": size(5632),
        "num_experts_per_tok": size(4),
        "qkv_bias": flag(True),
    }
)
QWEN3_MOE_OPTIONS = SHARED | SPARSE | {
    "intermediate_size": size(6144),
    "num_key_value_heads": default(size(None), 4),
    "moe_intermediate_size": size(768),
    "num_experts_per_tok": size(8),
    "attention_bias": flag(False),
}  # fmt: skip


def layered(name: str, about: str, c: Values, **more: Any) -> Spec:
    """A decoder of which some layers have a window. more: keys of its attention."""
    window = c["sliding_window"] if c["use_sliding_window"] else None
    first = c["max_window_layers"]
    kinds = c["layer_types"] or [SLIDING if window and i >= first else FULL for i in range(c["num_hidden_layers"])]
    kinds = kinds if window else [FULL] * len(kinds)
    usual, stages, counted = stack(kinds, {kind: {"pattern": text} for kind, text in PATTERNS.items()})
    sizes = llama.sizes_of(c, **counted, window=window if SLIDING in kinds else None)
    blocks = {"attention": llama.attention(c, sizes, PATTERNS[usual], **more), "feedforward": llama.feedforward(c)}
    return llama.decoder(name, about, c, sizes, blocks, stack=stages)


def qk_norm(c: Values) -> Any:
    """A norm of each head by itself."""
    return norm("rms_norm", c["rms_norm_eps"])


def qwen2(c: Values) -> Spec:
    return layered("qwen2", "Qwen 2 (Yang et al. 2024)", c, biased=["query", "key", "value"])


def qwen3(c: Values) -> Spec:
    return layered("qwen3", "Qwen 3 (Yang et al. 2025)", c, biased=c["attention_bias"], qk_norm=qk_norm(c))


def sparse(name: str, about: str, c: Values, count: int, attends: Spec, **more: Any) -> Spec:
    """A decoder of experts that drop no token, and of layers without any. attends: keys of its attention; more: of its
    experts."""
    many, step = c["num_local_experts"] or c["num_experts"] or count, c["decoder_sparse_step"]
    routed = [i not in c["mlp_only_layers"] and (i + 1) % step == 0 for i in range(c["num_hidden_layers"])]
    kinds = ["experts" if one else "feedforward" for one in routed]
    made, counted = stages(kinds, lambda kind: ["attention", kind])
    own: Spec = {"experts": many, "expert": c["moe_intermediate_size"]}
    own |= {"shared": c["shared_expert_intermediate_size"]} if "shared" in more else {}
    if all(routed):  # no other size is called `inner`
        c = {**c, "intermediate_size": own.pop("expert")}
    sizes = llama.sizes_of(c, **counted, **(own if any(routed) else {}))
    experts = {
        "kind": "moe", "top_k": c["num_experts_per_tok"], "capacity": "none", "inner": "expert",
        "activation": c["hidden_act"], "gated": True, "normalize": c["norm_topk_prob"], "aux_loss": 0, **more,
    }  # fmt: skip
    if all(routed):
        experts.pop("inner")
    each = {"feedforward": llama.feedforward(c), "experts": experts}
    blocks = {"attention": llama.attention(c, sizes, **attends), **{kind: each[kind] for kind in each if kind in kinds}}
    return llama.decoder(name, about, c, sizes, blocks, stack=made)


def qwen2_moe(c: Values) -> Spec:
    attends = {"biased": ["query", "key", "value"] if c["qkv_bias"] else False}
    shared = {"inner": "shared", "gate": True}
    return sparse("qwen2_moe", "Qwen 2 with experts (Yang et al. 2024)", c, 60, attends, shared=shared)


def qwen3_moe(c: Values) -> Spec:
    attends = {"biased": c["attention_bias"], "qk_norm": qk_norm(c)}
    return sparse("qwen3_moe", "Qwen 3 with experts (Yang et al. 2025)", c, 128, attends)


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

SHARED_EXPERT: tuple[WeightRow, ...] = (
    *turned("layers.{}.experts.shared.weight", "model.layers.{}.mlp.shared_expert_gate.weight"),
    *(
        row
        for part in ("gate", "up", "down")
        for row in turned(
            f"layers.{{}}.experts.shared.{part}.weight", f"model.layers.{{}}.mlp.shared_expert.{part}_proj.weight"
        )
    ),
)
WINDOWLESS = frozenset({"layer_types", "max_window_layers", "router_aux_loss_coef", "sliding_window"})
"""What says nothing where no window is used, and no loss of the router."""

QWEN2 = llama.DECODER(
    name="qwen2",
    architectures={"Qwen2ForCausalLM": Architecture()},
    options=QWEN2_OPTIONS,
    spec=qwen2,
    rows=llama.LLAMA.rows,
)
QWEN3 = llama.DECODER(
    name="qwen3",
    architectures={"Qwen3ForCausalLM": Architecture()},
    options=QWEN3_OPTIONS,
    spec=qwen3,
    rows=(*llama.LLAMA.rows, *QK_NORMS),
)
QWEN3_MOE = llama.DECODER(
    name="qwen3_moe",
    architectures={"Qwen3MoeForCausalLM": Architecture()},
    options=QWEN3_MOE_OPTIONS,
    spec=qwen3_moe,
    rows=(*llama.LLAMA.rows, *QK_NORMS, *EXPERTS),
    ignored=WINDOWLESS,
)
QWEN2_MOE = llama.DECODER(
    name="qwen2_moe",
    architectures={"Qwen2MoeForCausalLM": Architecture()},
    options=QWEN2_MOE_OPTIONS,
    spec=qwen2_moe,
    rows=(*llama.LLAMA.rows, *EXPERTS, *SHARED_EXPERT),
    ignored=WINDOWLESS,
)
