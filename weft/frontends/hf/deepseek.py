"""DeepSeek-V3 (DeepSeek-AI 2024): keys and values of a latent, and experts by groups behind layers without any."""

import math

from weft.frontends.hf import llama, qwen
from weft.frontends.hf.config.family import Architecture, ModelFamily, Spec, Values, norm, small
from weft.frontends.hf.config.options import (
    ConfigOption,
    activation,
    default,
    flag,
    layers,
    number,
    only,
    rate,
    size,
    whole,
)
from weft.frontends.hf.config.rotary import options as rotary_options
from weft.frontends.hf.config.rotary import spelled, turns
from weft.frontends.hf.mixtral import BALANCE
from weft.frontends.hf.tensors.weights import WeightRow, linear, same, turned

ROUTER = "only the router of DeepSeek-V3 is imported: a sigmoid of each score, and a bias that chooses"
OPTIONS: dict[str, ConfigOption] = {
    "vocab_size": size(129280),
    "hidden_size": size(7168),
    "intermediate_size": size(18432),
    "moe_intermediate_size": size(2048),
    "num_hidden_layers": layers(61),
    "num_attention_heads": size(128),
    "n_shared_experts": size(1),
    "n_routed_experts": size(256),
    "routed_scaling_factor": number(2.5),
    "kv_lora_rank": size(512),
    "q_lora_rank": default(size(None), 1536),
    "qk_rope_head_dim": size(64),
    "qk_nope_head_dim": size(128),
    "v_head_dim": size(128),
    "n_group": size(8),
    "topk_group": size(4),
    "num_experts_per_tok": size(8),
    "first_k_dense_replace": whole(3),
    "norm_topk_prob": flag(True),
    "hidden_act": activation("silu"),
    "max_position_embeddings": size(4096),
    "initializer_range": number(0.02),
    "rms_norm_eps": number(1e-6),
    "tie_word_embeddings": flag(False),
    "rope_interleave": flag(True),
    "attention_bias": flag(False),
    "attention_dropout": rate(),
    "output_router_logits": only(False, BALANCE),
    "moe_layer_freq": only(1, "layers without experts behind those with are not imported"),
    "scoring_func": only("sigmoid", ROUTER),
    "topk_method": only("noaux_tc", ROUTER),
    **rotary_options(10000.0),
}
IGNORED = frozenset({
    "aux_loss_alpha", "ep_size", "head_dim", "num_key_value_heads", "num_mtp_layers", "num_nextn_predict_layers",
    "pretraining_tp", "qk_head_dim", "seq_aux",
})  # fmt: skip
"""Where experts run, a loss that transformers has not, layers that predict further tokens, sizes that follow."""


def attention(c: Values) -> Spec:
    """Latents with norms whose eps no option says; rotary positions on what of a head has one key for all."""
    found = turns(c)
    rotary = spelled(found | {"part": 1}, c["qk_rope_head_dim"])
    if c["rope_interleave"]:
        rotary = {**(rotary if isinstance(rotary, dict) else {}), "interleaved": True}
    ranks = {"query_rank": "query_rank"} if c["q_lora_rank"] else {}
    made: Spec = {
        "kind": "attention", "pattern": "causal", "value": "value", "latent": {"rank": "rank", **ranks,
        "shared": "rotary"}, "rotary": rotary, "bias": c["attention_bias"],
    }  # fmt: skip
    if c["attention_bias"] and not c["q_lora_rank"]:
        made["bias"] = ["key", "value", "output"]
    made |= {"dropout": c["attention_dropout"]} if c["attention_dropout"] else {}
    if (every := found.get("every")) and found["scaling"]["factor"] > 1:
        made["scale"] = f"(0.1*{every}*log({found['scaling']['factor']}) + 1)**2/sqrt(head)"
    return made


def experts(c: Values) -> Spec:
    """Experts of the best groups that drop no token, and those that every token goes to."""
    groups = {"groups": "groups", "groups_kept": c["topk_group"]} if c["n_group"] > 1 else {}
    return {
        "kind": "moe", "top_k": c["num_experts_per_tok"], "capacity": "none", "inner": "expert",
        "activation": c["hidden_act"], "gated": True, "router": "sigmoid", "choice_bias": True, **groups,
        "normalize": c["norm_topk_prob"], "route_scale": c["routed_scaling_factor"], "shared": {"inner": "shared"},
        "aux_loss": 0,
    }  # fmt: skip


def spec(c: Values) -> Spec:
    dense = min(c["first_k_dense_replace"], c["num_hidden_layers"])
    counts = {"dense": dense or None, "routed": c["num_hidden_layers"] - dense or None}
    blocks: Spec = {"attention": attention(c)}
    own: Spec = {"own": c["qk_nope_head_dim"], "rotary": c["qk_rope_head_dim"], "value": c["v_head_dim"]}
    own |= {"rank": c["kv_lora_rank"], "query_rank": c["q_lora_rank"]}
    stack: list[Spec] = []
    if dense:
        blocks["feedforward"] = llama.feedforward(c)
        stack.append({"repeat": "dense", "layer": ["attention", "feedforward"]})
    fewer: dict[str, int] = {}
    if counts["routed"]:
        blocks["experts"] = experts(c)
        stack.append({"repeat": "routed", "layer": ["attention", "experts"]})
        groups, inner, shared = c["n_group"], c["moe_intermediate_size"], c["n_shared_experts"]
        own |= {"experts": c["n_routed_experts"], "groups": groups if groups > 1 else None, "expert": inner}
        own["shared"] = inner if shared == 1 else f"{shared}*expert"
        fewer["experts"] = groups * max(2, math.ceil(c["num_experts_per_tok"] / c["topk_group"]))
    sizes = llama.sizes_of({**c, "head_dim": "own + rotary", "num_key_value_heads": None}, layers=None, **counts, **own)
    about = "DeepSeek-V3 (DeepSeek-AI 2024)"
    return llama.decoder(
        "deepseek_v3", about, c, sizes, blocks, norm("rms_norm", c["rms_norm_eps"]), stack=stack,
        small=small(sizes, **fewer),
    )  # fmt: skip


def projections() -> tuple[WeightRow, ...]:
    """Theirs hold head by head what of queries turns behind what does not, and values behind keys."""
    ours, theirs = "layers.{}.attention", "model.layers.{}.self_attn"
    queries, heads = (f"{ours}.query.weight", f"{ours}.query_shared.weight"), "num_attention_heads"
    down = "kv_a_proj_with_mqa"
    return (
        *linear(f"{ours}.query_latent", f"{theirs}.q_a_proj"),
        *same(f"{ours}.query_latent_norm.weight", f"{theirs}.q_a_layernorm.weight"),
        WeightRow(queries, f"{theirs}.q_b_proj.weight", True, 0, heads, given="q_lora_rank"),
        WeightRow(queries, f"{theirs}.q_proj.weight", True, 0, heads, lacking="q_lora_rank"),
        WeightRow((f"{ours}.latent.weight", f"{ours}.key_shared.weight"), f"{theirs}.{down}.weight", True),
        WeightRow((f"{ours}.latent.bias", f"{ours}.key_shared.bias"), f"{theirs}.{down}.bias"),
        *same(f"{ours}.latent_norm.weight", f"{theirs}.kv_a_layernorm.weight"),
        WeightRow((f"{ours}.key.weight", f"{ours}.value.weight"), f"{theirs}.kv_b_proj.weight", True, 0, heads),
        *linear(f"{ours}.output", f"{theirs}.o_proj"),
    )


SHARED: tuple[WeightRow, ...] = tuple(
    row
    for part in ("gate", "up", "down")
    for row in turned(
        f"layers.{{}}.experts.shared.{part}.weight", f"model.layers.{{}}.mlp.shared_experts.{part}_proj.weight"
    )
)
BIAS = same("layers.{}.experts.router.bias", "model.layers.{}.mlp.gate.e_score_correction_bias")

DEEPSEEK_V3 = ModelFamily(
    name="deepseek_v3",
    architectures={"DeepseekV3ForCausalLM": Architecture(unneeded=("model.layers.61.",))},
    options=OPTIONS,
    spec=spec,
    rows=(*llama.ENDS, *llama.NORMS, *projections(), *llama.FEEDFORWARD, *qwen.EXPERTS, *BIAS, *SHARED),
    ignored=IGNORED,
    prefix="model.",
    tied=llama.TIED,
    unneeded=llama.UNNEEDED,
)
"""transformers, too, leaves a layer 61 unread: it predicts a token further on."""
