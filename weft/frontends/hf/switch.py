"""Switch Transformers (Fedus et al. 2021): T5 of which some layers have experts for a feed-forward, one for each token,
up to their capacity in a sequence."""

from typing import Any

from weft.errors import SpecError
from weft.frontends.hf import t5
from weft.frontends.hf.config.family import Architecture, ModelFamily, Spec, Values
from weft.frontends.hf.config.options import ConfigOption, activation, default, flag, layers, only, rate, size, whole
from weft.frontends.hf.tensors.weights import WeightRow, same, turned

JITTER = "{} is left out: noise on the router's input, while training, is not in the spec language"
OPTIONS: dict[str, ConfigOption] = {
    key: option for key, option in t5.OPTIONS.items() if key not in ("feed_forward_proj", "scale_decoder_outputs")
} | {
    "d_model": size(768),
    "num_layers": layers(12),
    "num_decoder_layers": default(size(None, most=4096), 12),
    "num_heads": size(12),
    "num_sparse_encoder_layers": whole(3),
    "num_sparse_decoder_layers": whole(3),
    "num_experts": size(8),
    "expert_capacity": size(64),
    "dense_act_fn": activation("relu"),
    "router_bias": flag(False),
    "router_jitter_noise": rate(0.01, JITTER),
    "router_dtype": only("float32", "the router runs in the accumulate dtype of the spec"),
}


def _sparse(c: Values, count: str, sparse: str) -> Spec:
    """Which layers have experts: every so many, the second first; where none are asked for, transformers makes the
    second one such all the same."""
    many, some = c[count] or c["num_layers"], c[sparse]
    step = many // some if some else many
    if step and many % step:
        message = f"{some} of {many} layers have experts, which is not every so many of them"
        raise SpecError.at((sparse,), "W0402", message, "a divisor of the layers")
    if step < 2:
        return {"layer": ["experts" if step else "feedforward"]}
    return {"cycle": [["experts" if i == 1 else "feedforward"] for i in range(step)]}


def spec(c: Values) -> Spec:
    dense = {"kind": "mlp", "activation": c["dense_act_fn"], "bias": False}
    experts = {
        "kind": "moe", "top_k": 1, "capacity": "capacity", "activation": c["dense_act_fn"],
        **({"logit_bias": True} if c["router_bias"] else {}), "aux_loss": 0,
    }  # fmt: skip
    stacks = [
        _sparse(c, "num_layers", "num_sparse_encoder_layers"),
        _sparse(c, "num_decoder_layers", "num_sparse_decoder_layers"),
    ]
    used = {name for one in stacks for each in one.get("cycle", [one.get("layer")]) for name in each}
    blocks = {name: x for name, x in {"feedforward": dense, "experts": experts}.items() if name in used}
    about = "Switch Transformers (Fedus et al. 2021)"
    made = t5.made("switch_transformers", about, c, blocks, c["tie_word_embeddings"], *stacks)
    if "experts" in used:
        made["dims"] |= {"experts": c["num_experts"], "capacity": c["expert_capacity"]}
        made["small"] |= {"experts": min(4, c["num_experts"]), "capacity": min(16, c["expert_capacity"])}
    for count, one in zip(("layers", "decoder_layers"), stacks):
        made["small"][count] = max(made["small"][count], len(one.get("cycle", [])))
    return made


def layer(ours: str, theirs: str, parts: dict[str, str]) -> tuple[WeightRow, ...]:
    """One layer's attentions, then a feed-forward or experts, each after its norm."""
    rows: list[Any] = t5.attentions(ours, theirs, parts)
    last = f"{theirs}.layer.{len(parts)}"
    for part, name in {"up": "wi", "down": "wo"}.items():
        rows += turned(f"{ours}.feedforward.{part}.weight", f"{last}.mlp.{name}.weight")
        rows += turned(f"{ours}.experts.{part}.weight", f"{last}.mlp.experts.expert_*.{name}.weight")
    rows += turned(f"{ours}.experts.router.weight", f"{last}.mlp.router.classifier.weight")
    rows += same(f"{ours}.experts.router.logit_bias", f"{last}.mlp.router.classifier.bias")
    for block in ("feedforward", "experts"):
        rows += same(f"{ours}.{block}_norm.weight", f"{last}.layer_norm.weight")
    return tuple(rows)


SWITCH = ModelFamily(
    name="switch_transformers",
    architectures={"SwitchTransformersForConditionalGeneration": Architecture()},
    options=OPTIONS,
    spec=spec,
    rows=(
        *t5.ENDS,
        *layer("source.layers.{}", "encoder.block.{}", t5.ENCODER),
        *layer("target.layers.{}", "decoder.block.{}", t5.DECODER),
    ),
    # of losses, what follows from other options, and what the code does not read
    ignored=frozenset({
        "router_z_loss_coef", "router_aux_loss_coef", "encoder_sparse_step", "decoder_sparse_step", "router_type",
        "num_selected_experts", "feed_forward_proj", "is_gated_act", "classifier_dropout", "output_past",
        "batch_prioritized_routing", "scale_decoder_outputs", "router_ignore_padding_tokens", "add_router_probs",
    }),
    tied=t5.TIED,
    unneeded=t5.UNNEEDED,
)  # fmt: skip
