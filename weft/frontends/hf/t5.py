"""T5 (Raffel et al. 2020) and its version 1.1: an encoder and a decoder of unscaled scores with buckets of distances,
RMSNorm, no biases; one table of tokens, which in the first version is the output matrix too."""

from functools import partial
from typing import Any

from weft.frontends.hf.config.family import RUNTIME, SMALL, Architecture, ModelFamily, Spec, Values, norm, without
from weft.frontends.hf.config.options import ACTIVATIONS, ConfigOption, Unsaid, flag, layers, number, only, rate, size
from weft.frontends.hf.config.rotary import whole
from weft.frontends.hf.tensors.weights import WeightRow, linear, same

DROPPED = "{} is left out inside feed-forwards and behind the last norms, where weft drops nothing"
ONE_SEQUENCE = "a decoder of its blocks is a spec with one stream"


def _feedforward(value: Any) -> tuple[str, bool]:
    """The activation, and whether it is gated."""
    *gated, name = value.split("-") if isinstance(value, str) else [""]
    known = {"gated-gelu": "gelu_tanh"}.get(str(value)) or ACTIVATIONS.get(name)
    if known is None or gated not in ([], ["gated"]):
        raise Unsaid("W0104", f"{str(value)[:60]!r} is nothing that a spec says", "relu, gated-gelu, gated-silu")
    return known, bool(gated)


OPTIONS: dict[str, ConfigOption] = {
    "vocab_size": size(32128),
    "n_positions": size(512),
    "d_model": size(512),
    "d_kv": size(64),
    "d_ff": size(2048),
    "num_layers": layers(6),
    "num_decoder_layers": size(None, most=4096),
    "num_heads": size(8),
    "relative_attention_num_buckets": size(32, most=256),
    "relative_attention_max_distance": size(128),
    "dropout_rate": rate(0.1, DROPPED),
    "layer_norm_epsilon": number(1e-6),
    "initializer_factor": number(1.0),
    "feed_forward_proj": ConfigOption(_feedforward, "relu"),
    "tie_word_embeddings": flag(True),
    "scale_decoder_outputs": ConfigOption(lambda v: None if v is None else flag(True).read(v), None),
    "is_encoder_decoder": only(True, ONE_SEQUENCE),
    "is_decoder": only(False, ONE_SEQUENCE),
}


def attention(c: Values, pattern: str, **more: Any) -> Spec:
    """Scores as they are, no biases."""
    return without(
        {"kind": "attention", "pattern": pattern, "scale": 1, "bias": False, "dropout": c["dropout_rate"], **more}
    )


def buckets(c: Values) -> Spec:
    """The number that a score has of its distance, the same table in every layer."""
    many, most = c["relative_attention_num_buckets"], c["relative_attention_max_distance"]
    said = {"buckets": None if many == 32 else many, "max_distance": None if most == 128 else most}
    return {"relative": without({"kind": "buckets", **said, "shared": True})}


def spec(c: Values) -> Spec:
    act, gated = c["feed_forward_proj"]
    scaled = c["tie_word_embeddings"] if c["scale_decoder_outputs"] is None else c["scale_decoder_outputs"]
    dense = {"kind": "mlp", "activation": act, **({"gated": True} if gated else {}), "bias": False}
    last = {"layer": ["feedforward"]}
    return made("t5", "T5 (Raffel et al. 2020)", c, {"feedforward": dense}, scaled, last, last)


def made(name: str, about: str, c: Values, blocks: Spec, scaled: bool, encoder: Spec, decoder: Spec) -> Spec:
    """An encoder and a decoder. blocks: besides attention. scaled: is the head the table of tokens, scaled?
    encoder, decoder: `layer`, or `cycle`, of what stands behind the attentions of a layer."""
    rule = norm("rms_norm", c["layer_norm_epsilon"])
    sizes = {
        "batch": 1, "source": c["n_positions"], "target": c["n_positions"], "width": c["d_model"],
        "heads": c["num_heads"], "head": c["d_kv"], "inner": c["d_ff"], "layers": c["num_layers"],
        "decoder_layers": c["num_decoder_layers"] or c["num_layers"], "vocab": c["vocab_size"],
    }  # fmt: skip
    factor = whole(c["initializer_factor"])
    embed = {"embed": {"dropout": c["dropout_rate"]}} if c["dropout_rate"] else {}
    return {
        "weft": 1,
        "name": name,
        "about": f"{about}, at the shapes of a Hugging Face config.",
        "dims": sizes,
        "runtime": RUNTIME,
        "blocks": {
            "encode": attention(c, "all", **buckets(c)),
            "decode": attention(c, "causal", **buckets(c)),
            "cross": attention(c, "all", context="source"),
            **blocks,
        },
        "streams": {
            "source": {"length": "source", "once": True, **embed},
            "target": {"length": "target", "embed": {"like": "source", "tied": "source"}},
        },
        "sublayer": without({"norm": rule, "residual": "pre", "dropout": c["dropout_rate"]}),
        "stack": [
            {"stream": "source", **_behind("layers", ["encode"], encoder), "norm": rule},
            {"stream": "target", **_behind("decoder_layers", ["decode", "cross"], decoder)},
        ],
        "norm": rule,
        "head": {"stream": "target", **({"tied": True, "scale": "1/sqrt(width)"} if scaled else {})},
        "init": {
            "weight": {"normal": f"{factor}/sqrt(fan_in)"}, "embedding": {"normal": factor},
            "position": {"normal": f"{factor}/sqrt(width)"},
        },
        "small": {
            k: min(v, sizes[k]) for k, v in {**SMALL, "source": 32, "target": 24, "decoder_layers": 2}.items()
            if k in sizes
        },
    }  # fmt: skip


def _behind(count: str, attentions: list[str], rest: Spec) -> Spec:
    """The layers of a stage: these attentions, and behind them what the layer has besides."""
    if "layer" in rest:
        return {"repeat": count, "layer": [*attentions, *rest["layer"]]}
    every = [[*attentions, *each] for each in rest["cycle"]]
    return {"repeat": f"{count} // {len(every)}", "cycle": every}


def attentions(ours: str, theirs: str, parts: dict[str, str]) -> list[WeightRow]:
    """One layer's attentions, by ours and theirs, each after its norm."""
    rows: list[WeightRow] = []
    for i, (own, other) in enumerate(parts.items()):
        for part, letter in {"query": "q", "key": "k", "value": "v", "output": "o"}.items():
            rows += linear(f"{ours}.{own}.{part}", f"{theirs}.layer.{i}.{other}.{letter}")
        rows += same(f"{ours}.{own}_norm.weight", f"{theirs}.layer.{i}.layer_norm.weight")
    return rows


def layer(ours: str, theirs: str, parts: dict[str, str]) -> tuple[WeightRow, ...]:
    """One layer's attentions, then its feed-forward after its norm."""
    rows, last = attentions(ours, theirs, parts), f"{theirs}.layer.{len(parts)}"
    matrix = partial(WeightRow, turned=True)
    rows += [
        matrix((f"{ours}.feedforward.gate.weight",), f"{last}.DenseReluDense.wi_0.weight"),
        matrix((f"{ours}.feedforward.up.weight",), f"{last}.DenseReluDense.wi_1.weight", given="gated"),
        matrix((f"{ours}.feedforward.up.weight",), f"{last}.DenseReluDense.wi.weight", lacking="gated"),
        matrix((f"{ours}.feedforward.down.weight",), f"{last}.DenseReluDense.wo.weight"),
    ]
    return (*rows, *same(f"{ours}.feedforward_norm.weight", f"{last}.layer_norm.weight"))


def table(ours: str, theirs: str) -> tuple[WeightRow, ...]:
    """The buckets, which the first layer holds for all."""
    return same(ours, f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")


SHARED = "shared.weight"
ENCODER, DECODER = {"encode": "SelfAttention"}, {"decode": "SelfAttention", "cross": "EncDecAttention"}
ENDS: tuple[WeightRow, ...] = (
    *same("source.embed.tokens", SHARED),
    *table("source.encode.buckets", "encoder"),
    *table("target.decode.buckets", "decoder"),
    *same("source_layer_norm.weight", "encoder.final_layer_norm.weight"),
    *same("norm.weight", "decoder.final_layer_norm.weight"),
    *linear("head", "lm_head"),
)
TIED = tuple((f"{name}.weight", SHARED) for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"))
UNNEEDED = (".layer.1.EncDecAttention.relative_attention_bias.weight",)

T5 = ModelFamily(
    name="t5",
    architectures={"T5ForConditionalGeneration": Architecture()},
    options=OPTIONS,
    spec=spec,
    derived=lambda c: {"gated": c["feed_forward_proj"][1] or None},
    rows=(
        *ENDS,
        *layer("source.layers.{}", "encoder.block.{}", ENCODER),
        *layer("target.layers.{}", "decoder.block.{}", DECODER),
    ),
    # what feed_forward_proj says, of heads that classify, and of files that were written long ago
    ignored=frozenset({"dense_act_fn", "is_gated_act", "classifier_dropout", "output_past"}),
    tied=TIED,
    unneeded=UNNEEDED,
)
