"""Llama (Touvron et al. 2023) and what is built as it is: rotary positions, RMSNorm, SwiGLU, grouped queries."""

from functools import partial
from typing import Any

from weft.frontends.hf.config.family import (
    RUNTIME,
    SMALL,
    Architecture,
    ModelFamily,
    Spec,
    Values,
    bias,
    dims,
    norm,
    small,
    without,
)
from weft.frontends.hf.config.options import ConfigOption, activation, flag, layers, number, rate, size
from weft.frontends.hf.config.rotary import head_of, kept, rotary
from weft.frontends.hf.config.rotary import options as rotary_options
from weft.frontends.hf.tensors.weights import WeightRow, linear, same

OPTIONS: dict[str, ConfigOption] = {
    "vocab_size": size(32000),
    "hidden_size": size(4096),
    "intermediate_size": size(11008),
    "num_hidden_layers": layers(32),
    "num_attention_heads": size(32),
    "num_key_value_heads": size(None),
    "head_dim": size(None),
    "hidden_act": activation("silu"),
    "max_position_embeddings": size(2048),
    "initializer_range": number(0.02),
    "rms_norm_eps": number(1e-6),
    "tie_word_embeddings": flag(False),
    "attention_bias": flag(False),
    "attention_dropout": rate(),
    "mlp_bias": flag(False),
    **rotary_options(10000.0),
}


def without_biases() -> dict[str, ConfigOption]:
    """The options of a family whose matrices have no biases, or fixed ones."""
    return {key: option for key, option in OPTIONS.items() if key not in ("attention_bias", "mlp_bias")}


DIVIDES = (("num_key_value_heads", "num_attention_heads"), ("num_attention_heads", "hidden_size", "head_dim"))
UNNEEDED = (".rotary_emb.inv_freq",)
TIED = (("lm_head.weight", "model.embed_tokens.weight"),)


def sizes_of(c: Values, **more: Any) -> Spec:
    """The dims of a config that calls its sizes as Llama does."""
    layers = more.pop("layers", c["num_hidden_layers"])
    return dims(
        c["max_position_embeddings"], c["hidden_size"], c["num_attention_heads"], c["intermediate_size"],
        layers, c["vocab_size"], kv_heads=c["num_key_value_heads"], head=c["head_dim"], **more,
    )  # fmt: skip


def attention(c: Values, sizes: Spec, pattern: str = "causal", biased: Any = False, **more: Any) -> Spec:
    """Grouped queries with rotary positions. biased: all projections, none, or a list."""
    return without({
        "kind": "attention", "kv_heads": "kv_heads" if "kv_heads" in sizes else None, "pattern": pattern,
        "rotary": more.pop("rotary", None) or rotary(c),
        "bias": bias(biased) if isinstance(biased, bool) else biased, "dropout": c["attention_dropout"], **more,
    })  # fmt: skip


def decoder(name: str, about: str, c: Values, sizes: Spec, blocks: Spec, rule: Any = None, **parts: Any) -> Spec:
    """A stack of attention and feed-forward, each after an RMSNorm (or `rule`); `parts` are keys that differ."""
    rule = rule or norm("rms_norm", c["rms_norm_eps"])
    most = max(SMALL["experts"], c.get("num_experts_per_tok", 0))
    few = kept(blocks["attention"].get("rotary"), head_of(c))
    made = {
        "weft": 1,
        "name": name,
        "about": f"{about}, at the shapes of a Hugging Face config.",
        "dims": sizes,
        "runtime": RUNTIME,
        "blocks": blocks,
        "sublayer": {"norm": rule, "residual": "pre"},
        "stack": [{"repeat": "layers", "layer": [*blocks]}],
        "norm": rule,
        "head": {"tied": True} if c["tie_word_embeddings"] else None,
        "init": {"weight": {"normal": c["initializer_range"]}},
        "small": small(sizes, **({"experts": most} if "experts" in sizes else {}), **few),
    }
    return without(made | parts)


def feedforward(c: Values) -> Spec:
    """SwiGLU, or with another activation."""
    return without({
        "kind": "mlp", "activation": c["hidden_act"], "gated": True, "bias": bias(c.get("mlp_bias", False)),
    })  # fmt: skip


def spec(c: Values) -> Spec:
    sizes = sizes_of(c)
    blocks = {"attention": attention(c, sizes, biased=c["attention_bias"]), "feedforward": feedforward(c)}
    return decoder("llama", "Llama (Touvron et al. 2023)", c, sizes, blocks)


ATTENTION: tuple[WeightRow, ...] = tuple(
    row
    for ours, theirs in {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}.items()
    for row in linear(f"layers.{{}}.attention.{ours}", f"model.layers.{{}}.self_attn.{theirs}")
)
FEEDFORWARD: tuple[WeightRow, ...] = tuple(
    row for part in ("gate", "up", "down")
    for row in linear(f"layers.{{}}.feedforward.{part}", f"model.layers.{{}}.mlp.{part}_proj")
)  # fmt: skip
ENDS: tuple[WeightRow, ...] = (
    *same("embed.tokens", "model.embed_tokens.weight"),
    *same("norm.weight", "model.norm.weight"),
    *linear("head", "lm_head"),
)
NORMS: tuple[WeightRow, ...] = (
    *same("layers.{}.attention_norm.weight", "model.layers.{}.input_layernorm.weight"),
    *same("layers.{}.feedforward_norm.weight", "model.layers.{}.post_attention_layernorm.weight"),
)

DECODER = partial(ModelFamily, prefix="model.", divides=DIVIDES, tied=TIED, unneeded=UNNEEDED)
"""A family whose checkpoints are laid out as Llama's."""
LLAMA = DECODER(
    name="llama",
    architectures={"LlamaForCausalLM": Architecture()},
    options=OPTIONS,
    spec=spec,
    rows=(*ENDS, *NORMS, *ATTENTION, *FEEDFORWARD),
    ignored=frozenset({"pretraining_tp"}),  # how a product is cut, not what it is
)
