"""BERT (Devlin et al. 2018), and what its descendants have of it: LayerNorm after each sub-layer, token types, a dense
layer before the output matrix."""

from __future__ import annotations

from typing import Any

from weft.frontends.hf.config.family import RUNTIME, Architecture, ModelFamily, Spec, Values, dims, norm, small, without
from weft.frontends.hf.config.options import (
    UNDROPPED,
    ConfigOption,
    Unsaid,
    activation,
    flag,
    layers,
    number,
    only,
    rate,
    size,
)
from weft.frontends.hf.tensors.weights import WeightRow, affine, linear, same, turned

DECODER = "an encoder is imported without a mask; a decoder of its blocks is a spec with `pattern: causal`"


def _count(value: Any) -> int | None:
    """How many classes are named; null for two."""
    if value is not None and not (isinstance(value, dict) and value):
        raise Unsaid("W0105", "expected a map from numbers to names")
    return len(value) if value else None


OPTIONS: dict[str, ConfigOption] = {
    "vocab_size": size(30522),
    "hidden_size": size(768),
    "num_hidden_layers": layers(12),
    "num_attention_heads": size(12),
    "intermediate_size": size(3072),
    "hidden_act": activation("gelu"),
    "hidden_dropout_prob": rate(0.1),
    "attention_probs_dropout_prob": rate(0.1),
    "max_position_embeddings": size(512),
    "type_vocab_size": size(2),
    "initializer_range": number(0.02),
    "layer_norm_eps": number(1e-12),
    "position_embedding_type": only("absolute", "relative positions are not in the spec language"),
    "is_decoder": only(False, DECODER),
    "tie_word_embeddings": flag(True),
    "classifier_dropout": rate(None, UNDROPPED),
    "id2label": ConfigOption(_count, None),
    "num_labels": size(None),
}
DIVIDES = (("num_attention_heads", "hidden_size"),)


def language(c: Values) -> Spec:
    """The head of masked words: a dense layer, its activation and norm, the table of tokens."""
    transform = {"activation": c["hidden_act"], "norm": norm("layer_norm", c["layer_norm_eps"])}
    return without({"kind": "language", "tied": c["tie_word_embeddings"] or None, "bias": True, "transform": transform})


def encoder(name: str, about: str, c: Values, sizes: Spec, attention: Spec, embed: Spec, heads: list[Spec]) -> Spec:
    """A stack of attention and feed-forward, each added and then normalised."""
    rule = norm("layer_norm", c["layer_norm_eps"])
    return {
        "weft": 1,
        "name": name,
        "about": f"{about}, at the shapes of a Hugging Face config.",
        "dims": sizes,
        "runtime": RUNTIME,
        "blocks": {
            "attention": without({"kind": "attention"} | attention | {"dropout": c["attention_probs_dropout_prob"]}),
            "feedforward": {"kind": "mlp", "activation": c["hidden_act"]},
        },
        "embed": without(embed | {"norm": rule, "dropout": c["hidden_dropout_prob"]}),
        "sublayer": without({"norm": rule, "residual": "post", "dropout": c["hidden_dropout_prob"]}),
        "stack": [{"repeat": "layers", "layer": ["attention", "feedforward"]}],
        "head": heads if len(heads) > 1 else heads[0],
        "init": {"weight": {"normal": c["initializer_range"]}},
        "small": small(sizes),
    }


def sizes_of(c: Values, seq: int, **more: object) -> Spec:
    """The dims of a config that calls its sizes as BERT does."""
    return dims(
        seq, c["hidden_size"], c["num_attention_heads"], c["intermediate_size"], c["num_hidden_layers"],
        c["vocab_size"], **more,
    )  # fmt: skip


def classes(c: Values) -> Spec:
    """The head of a classifier of sequences: the first position, pooled."""
    return {"kind": "classify", "classes": c["id2label"] or c["num_labels"] or 2, "pool": "tanh"}


def spec(c: Values) -> Spec:
    sizes = sizes_of(c, c["max_position_embeddings"], types=c["type_vocab_size"])
    embed = {"positions": [{"learned": "seq"}], "types": "types"}
    heads = {
        "BertForMaskedLM": [language(c)],
        "BertForPreTraining": [language(c), {"kind": "classify", "classes": 2, "pool": "tanh"}],
        "BertForSequenceClassification": [classes(c)],
    }[c["architecture"]]
    return encoder("bert", "BERT (Devlin et al. 2018)", c, sizes, {"pattern": "all"}, embed, heads)


def layer(theirs: str) -> tuple[WeightRow, ...]:
    """Attention and feed-forward, each normalised after it is added."""
    own = "layers.{}"
    return (
        *linear(f"{own}.attention.query", f"{theirs}.attention.self.query"),
        *linear(f"{own}.attention.key", f"{theirs}.attention.self.key"),
        *linear(f"{own}.attention.value", f"{theirs}.attention.self.value"),
        *linear(f"{own}.attention.output", f"{theirs}.attention.output.dense"),
        *affine(f"{own}.attention_norm", f"{theirs}.attention.output.LayerNorm"),
        *linear(f"{own}.feedforward.up", f"{theirs}.intermediate.dense"),
        *linear(f"{own}.feedforward.down", f"{theirs}.output.dense"),
        *affine(f"{own}.feedforward_norm", f"{theirs}.output.LayerNorm"),
    )


def embedding(theirs: str, types: str = "embed.types") -> tuple[WeightRow, ...]:
    """The tables that are added up, and their norm."""
    return (
        *same("embed.tokens", f"{theirs}.word_embeddings.weight"),
        *same("embed.positions.0", f"{theirs}.position_embeddings.weight"),
        *same(types, f"{theirs}.token_type_embeddings.weight"),
        *affine("embed.norm", f"{theirs}.LayerNorm"),
    )


PREDICTIONS: tuple[WeightRow, ...] = (
    *linear("head.transform", "cls.predictions.transform.dense"),
    *affine("head.transform.norm", "cls.predictions.transform.LayerNorm"),
    *same("head.bias", "cls.predictions.bias"),
    *turned("head.weight", "cls.predictions.decoder.weight"),
)
RENAMED = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
TIED = (
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
)

BERT = ModelFamily(
    name="bert",
    architectures={
        "BertForMaskedLM": Architecture(PREDICTIONS, unneeded=("bert.pooler.", "cls.seq_relationship.")),
        "BertForPreTraining": Architecture(
            (
                *PREDICTIONS,
                *linear("classify.pool", "bert.pooler.dense"),
                *linear("classify.classes", "cls.seq_relationship"),
            )
        ),
        "BertForSequenceClassification": Architecture(
            (*linear("classify.pool", "bert.pooler.dense"), *linear("classify.classes", "classifier"))
        ),
    },
    options=OPTIONS,
    spec=spec,
    rows=(*embedding("bert.embeddings"), *layer("bert.encoder.layer.{}")),
    prefix="bert.",
    divides=DIVIDES,
    renamed=RENAMED,
    tied=TIED,
    unneeded=(".position_ids",),
)
