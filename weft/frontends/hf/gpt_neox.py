"""GPT-NeoX (Black et al. 2022): attention and feed-forward beside each other, a part of each head turns; the rows of
queries, keys and values of one head lie together."""

from typing import Any

from weft.frontends.hf.config.family import (
    RUNTIME,
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
from weft.frontends.hf.config.options import ConfigOption, activation, flag, layers, number, only, rate, size
from weft.frontends.hf.config.rotary import head_of, kept, rotary, share
from weft.frontends.hf.config.rotary import options as rotary_options
from weft.frontends.hf.tensors.weights import WeightRow, affine, fused, linear, same, turned

OPTIONS: dict[str, ConfigOption] = {
    "vocab_size": size(50432),
    "hidden_size": size(6144),
    "num_hidden_layers": layers(44),
    "num_attention_heads": size(64),
    "intermediate_size": size(24576),
    "hidden_act": activation("gelu"),
    "attention_dropout": rate(0.0),
    "hidden_dropout": rate(0.0),
    "max_position_embeddings": size(2048),
    "initializer_range": number(0.02),
    "layer_norm_eps": number(1e-5),
    "tie_word_embeddings": flag(False),
    "use_parallel_residual": flag(True),
    "attention_bias": flag(True),
    "is_decoder": only(False, "the model is a decoder as it is", True),
    "rotary_pct": share(0.25),
    "rotary_emb_base": number(1e4, least=1.0),
    **rotary_options(10000.0),
}


def turning(c: Values) -> Any:
    """Rotary positions, in three spellings."""
    base = c["rotary_emb_base"] if c["rope_theta"] == 10000 else c["rope_theta"]
    return rotary({**c, "rope_theta": base, "partial_rotary_factor": c["rotary_pct"]})


def spec(c: Values) -> Spec:
    width, rule = c["hidden_size"], norm("layer_norm", c["layer_norm_eps"])
    sizes = dims(
        c["max_position_embeddings"], width, c["num_attention_heads"], c["intermediate_size"], c["num_hidden_layers"],
        c["vocab_size"],
    )  # fmt: skip
    both = ["attention", "feedforward"]
    return without({
        "weft": 1,
        "name": "gpt_neox",
        "about": "GPT-NeoX (Black et al. 2022), at the shapes of a Hugging Face config.",
        "dims": sizes,
        "runtime": RUNTIME,
        "blocks": {
            "attention": without({
                "kind": "attention", "pattern": "causal", "rotary": turning(c), "bias": bias(c["attention_bias"]),
                "dropout": c["attention_dropout"],
            }),
            "feedforward": {"kind": "mlp", "activation": c["hidden_act"]},
        },
        "embed": {"dropout": c["hidden_dropout"]} if c["hidden_dropout"] else None,
        "sublayer": without({"norm": rule, "residual": "pre", "dropout": c["hidden_dropout"]}),
        "stack": [{"repeat": "layers", "layer": [{"parallel": both}] if c["use_parallel_residual"] else both}],
        "norm": rule,
        "head": {"tied": True} if c["tie_word_embeddings"] else None,
        "init": {"weight": {"normal": c["initializer_range"]}},
        "small": small(sizes, **kept(turning(c), head_of(c))),
    })  # fmt: skip


ROWS: tuple[WeightRow, ...] = (
    *same("embed.tokens", "gpt_neox.embed_in.weight"),
    *affine("layers.{}.attention_norm", "gpt_neox.layers.{}.input_layernorm"),
    *affine("layers.{}.feedforward_norm", "gpt_neox.layers.{}.post_attention_layernorm"),
    *fused(
        "layers.{}.attention", ("query", "key", "value"), "gpt_neox.layers.{}.attention.query_key_value",
        groups="num_attention_heads",
    ),
    *linear("layers.{}.attention.output", "gpt_neox.layers.{}.attention.dense"),
    *linear("layers.{}.feedforward.up", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
    *linear("layers.{}.feedforward.down", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    *affine("norm", "gpt_neox.final_layer_norm"),
    *turned("head.weight", "embed_out.weight"),
)  # fmt: skip

GPT_NEOX = ModelFamily(
    name="gpt_neox",
    architectures={"GPTNeoXForCausalLM": Architecture()},
    options=OPTIONS,
    spec=spec,
    rows=ROWS,
    prefix="gpt_neox.",
    # of a classifier; names of dropouts that the first checkpoints have and nothing reads
    ignored=frozenset({"attention_probs_dropout_prob", "classifier_dropout", "hidden_dropout_prob"}),
    divides=(("num_attention_heads", "hidden_size"),),
    tied=(("embed_out.weight", "gpt_neox.embed_in.weight"),),
    unneeded=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)
