"""The parts of today's decoders against Hugging Face's, a family each: fp64, random weights, every gradient.

What the families share is said once: a spec is the keys that differ from `DECODER`."""

from collections.abc import Mapping
from copy import deepcopy
from importlib import import_module
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.parity.mapping import Row
from tests.parity.oracle import agree, built, in_double, integers, randomise
from tests.parity.test_transformers import entropy
from weft.frontends.schema import Model
from weft.ir.program import Program

transformers = pytest.importorskip("transformers")

DIMS = {"batch": 2, "seq": 24, "width": 36, "heads": 4, "kv": 2, "head": 8, "inner": 48, "layers": 2, "vocab": 64}
DECODER: dict[str, Any] = {
    "name": "decoder",
    "dims": DIMS,
    "blocks": {
        "attention": {"kind": "attention", "pattern": "causal", "kv_heads": "kv", "bias": False, "rotary": True},
        "feedforward": {"kind": "mlp", "activation": "silu", "gated": True, "bias": False},
    },
    "sublayer": {"norm": "rms_norm"},
    "stack": [{"repeat": "layers", "layer": ["attention", "feedforward"]}],
    "norm": "rms_norm",
}
SHARED: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 24, "rms_norm_eps": 1e-6,
    "attn_implementation": "eager", "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip

ROWS: tuple[Row, ...] = (
    ("embed.tokens", "model.embed_tokens.weight", "same"),
    *(
        (f"layers.{{}}.attention.{ours}.weight", f"model.layers.{{}}.self_attn.{theirs}_proj.weight", "turned")
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))
    ),
    *(
        (f"layers.{{}}.feedforward.{name}.weight", f"model.layers.{{}}.mlp.{name}_proj.weight", "turned")
        for name in ("gate", "up", "down")
    ),
    ("norm.weight", "model.norm.weight", "same"),
    ("head.weight", "lm_head.weight", "turned"),
)


def norms(**which: str) -> tuple[Row, ...]:
    """Rows of norms of a layer: our name, and theirs within the layer."""
    return tuple((f"layers.{{}}.{o}.weight", f"model.layers.{{}}.{t}.weight", "same") for o, t in which.items())


PRE = norms(attention_norm="input_layernorm", feedforward_norm="post_attention_layernorm")
SANDWICH = norms(
    attention_norm="input_layernorm", attention_output_norm="post_attention_layernorm",
    feedforward_norm="pre_feedforward_layernorm", feedforward_output_norm="post_feedforward_layernorm",
)  # fmt: skip
BEHIND = norms(attention_output_norm="post_attention_layernorm", feedforward_output_norm="post_feedforward_layernorm")
QK = (
    ("layers.{}.attention.query_norm.weight", "model.layers.{}.self_attn.q_norm.weight", "same"),
    ("layers.{}.attention.key_norm.weight", "model.layers.{}.self_attn.k_norm.weight", "same"),
)


def spec(**change: Any) -> dict[str, Any]:
    """DECODER with keys changed; maps are merged at any depth."""
    return merged(deepcopy(DECODER), change)


def merged(own: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in change.items():
        inside = isinstance(value, dict) and isinstance(own.get(key), dict)
        own[key] = merged(own[key], value) if inside else value
    return own


def program(**change: Any) -> Program:
    return built(Model.model_validate(spec(**change)))


def compared(family: str, config: Any, ours: Program, table: tuple[Row, ...], scale: float = 0.3) -> None:
    """The family's causal model of this config and the program give the same, from the same weights."""
    files = [import_module(f"transformers.models.{family}.modeling_{family}")]
    files.append(import_module("transformers.modeling_rope_utils"))
    with in_double(files[0]), in_double(files[1]):
        oracle = transformers.AutoModelForCausalLM.from_config(config).double().train()
        theirs = randomise(oracle, scale=scale)
        tokens, targets = integers(1, 64, 2, 24), integers(2, 64, 2, 24)
        logits = oracle(tokens, use_cache=False).logits
    want = {"loss": entropy(logits, targets), "logits": logits}
    agree(ours, table, theirs, {"tokens": tokens, "targets": targets}, want)
    read = {other.format(i) for _, other, _ in table for i in range(2)}
    assert set(theirs) == read


def test_qwen3_norms_each_query_and_key_head() -> None:
    config = transformers.Qwen3Config(**SHARED, rope_theta=1e6)
    ours = program(blocks={"attention": {"qk_norm": "rms_norm", "rotary": {"base": 1e6}}})
    compared("qwen3", config, ours, (*ROWS, *PRE, *QK))


def test_olmo2_norms_whole_projections_and_outputs() -> None:
    config = transformers.Olmo2Config(**SHARED, rope_theta=5e5)
    ours = program(
        blocks={"attention": {"qk_norm": {"kind": "rms_norm", "over": "projection"}, "rotary": {"base": 5e5}}},
        sublayer={"norm": "none", "output_norm": "rms_norm"},
    )
    compared("olmo2", config, ours, (*ROWS, *BEHIND, *QK))


@pytest.mark.parametrize(
    ("kind", "over"),
    [*product(["l2", "layer_norm"], ["head", "projection"]), ("rms_norm", "each_head"), ("layer_norm", "each_head")],
)
def test_other_norms_of_queries_and_keys(kind: str, over: str) -> None:
    """Against an attention of torch's own functions, whose l2 norm is normalize."""
    block = {"kind": "attention", "pattern": "causal", "kv_heads": "kv", "bias": False}
    norm = {"kind": kind, "over": over, "eps": 1e-30 if kind == "l2" else 1e-5, "bias": over != "projection"}
    ours = built(Model.model_validate({
        "name": "attention", "dims": DIMS, "stack": [{"layer": [{"block": block | {"qk_norm": norm}, "norm": "none"}]}],
    }))  # fmt: skip
    shapes = {name: tuple(ours.sizes[d] for d in p.dims) for name, (p, _) in ours.logical_names().items()}
    draw = torch.Generator().manual_seed(0)
    theirs = {n: torch.randn(s, generator=draw, dtype=torch.float64).requires_grad_() for n, s in shapes.items()}
    tokens, targets = integers(1, 64, 2, 24), integers(2, 64, 2, 24)
    own = {n.removeprefix("layers.0.attention."): v for n, v in theirs.items()}

    def made(name: str, x: torch.Tensor) -> torch.Tensor:
        y = torch.einsum("bsw,w...->bs...", x, own[f"{name}.weight"])
        weight, bias = own[f"{name}_norm.weight"], own.get(f"{name}_norm.bias")
        if over == "each_head":
            unit = (F.layer_norm if kind == "layer_norm" else F.rms_norm)(y, (8,), eps=1e-5) * weight
            return (unit if bias is None else unit + bias).reshape(2, 24, -1, 8).transpose(1, 2)
        rows = y if over == "head" else y.flatten(2)
        gains = (weight.flatten(), bias.flatten() if bias is not None else None)
        wide = (
            F.layer_norm(rows, gains[0].shape, *gains) if kind == "layer_norm" else F.normalize(rows, dim=-1) * gains[0]
        )
        return wide.reshape(y.shape).reshape(2, 24, -1, 8).transpose(1, 2)

    x = own["embed.tokens"][tokens]
    v = torch.einsum("bsw,whd->bhsd", x, own["value.weight"])
    y = F.scaled_dot_product_attention(made("query", x), made("key", x), v, is_causal=True, enable_gqa=True)
    out = torch.einsum("bhsd,hdw->bsw", y, own["output.weight"].flatten(0, -3).unflatten(0, (4,)))
    logits = (x + out) @ own["head.weight"]
    table = tuple((n.replace("layers.0.", "layers.{}."), n.replace("layers.0.", "layers.{}."), "same") for n in theirs)
    agree(
        ours,
        table,
        theirs,
        {"tokens": tokens, "targets": targets},
        {"loss": entropy(logits, targets), "logits": logits},
    )


def both(ours: str, theirs: str, how: str = "turned") -> tuple[Row, ...]:
    """A matrix or a norm of a layer, and its bias."""
    bias = "same" if how == "turned" else how
    return (f"layers.{{}}.{ours}.weight", f"{theirs}.weight", how), (f"layers.{{}}.{ours}.bias", f"{theirs}.bias", bias)


def ends(model: str, tokens: str, norm: str, head: str) -> tuple[Row, ...]:
    return (
        ("embed.tokens", f"{model}.{tokens}.weight", "same"), ("norm.weight", f"{model}.{norm}.weight", "same"),
        ("norm.bias", f"{model}.{norm}.bias", "same"), ("head.weight", f"{head}.weight", "turned"),
    )  # fmt: skip


BIASED: dict[str, Any] = {
    "blocks": {
        "attention": {"kv_heads": "heads", "bias": True},
        "feedforward": {"gated": False, "bias": True, "activation": "gelu"},
    },
    "sublayer": {"norm": "layer_norm"},
    "norm": "layer_norm",
}


def beside(**change: Any) -> list[dict[str, Any]]:
    """A stack whose attention and feed-forward stand beside each other."""
    return [{"repeat": "layers", "layer": [{"parallel": ["attention", "feedforward"]} | change]}]


def test_gpt_neox_sub_layers_beside_each_other() -> None:
    neox(True, {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0})


def neox(rotary: Any, rope: dict[str, Any], positions: int = 24) -> None:
    """A GPT-NeoX with these rotary positions, in our words and in theirs."""
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=positions, rope_parameters=rope, hidden_dropout=0.0, attention_dropout=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    layer = "gpt_neox.layers.{}"
    table = (
        *ends("gpt_neox", "embed_in", "final_layer_norm", "lm_head"),
        *(row for i, name in enumerate(("query", "key", "value"))
          for row in both(f"attention.{name}", f"{layer}.attention.query_key_value", f"dealt {i}/3/4")),
        *both("attention.output", f"{layer}.attention.dense"),
        *both("attention_norm", f"{layer}.input_layernorm", "same"),
        *both("feedforward.up", f"{layer}.mlp.dense_h_to_4h"), *both("feedforward.down", f"{layer}.mlp.dense_4h_to_h"),
        *both("feedforward_norm", f"{layer}.post_attention_layernorm", "same"),
    )  # fmt: skip
    change = {"dims": {"width": 64, "head": 16}, "stack": beside(), "blocks": {"attention": {"rotary": rotary}}}
    ours = program(**merged(deepcopy(BIASED), change))
    compared("gpt_neox", config, ours, table)


def test_phi_sub_layers_beside_each_other_share_a_norm() -> None:
    config = transformers.PhiConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=24, partial_rotary_factor=0.5, qk_layernorm=True, attn_implementation="eager",
    )  # fmt: skip
    layer = "model.layers.{}"
    table = (
        *ends("model", "embed_tokens", "final_layernorm", "lm_head"), ("head.bias", "lm_head.bias", "same"),
        *(row for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "dense"))
          for row in both(f"attention.{ours}", f"{layer}.self_attn.{theirs}")),
        *both("attention.query_norm", f"{layer}.self_attn.q_layernorm", "same"),
        *both("attention.key_norm", f"{layer}.self_attn.k_layernorm", "same"),
        *both("feedforward.up", f"{layer}.mlp.fc1"), *both("feedforward.down", f"{layer}.mlp.fc2"),
        *both("parallel_norm", f"{layer}.input_layernorm", "same"),
    )  # fmt: skip
    change = {
        "dims": {"width": 32}, "stack": beside(norm="layer_norm"), "head": {"bias": True},
        "blocks": {
            "attention": {"qk_norm": "layer_norm", "rotary": {"dims": 4}}, "feedforward": {"activation": "gelu_tanh"},
        },
    }  # fmt: skip
    compared("phi", config, program(**merged(deepcopy(BIASED), change)), table)


def test_gemma2_sandwich_norms_and_soft_caps() -> None:
    config = transformers.Gemma2Config(
        **SHARED, query_pre_attn_scalar=16, sliding_window=5, attn_logit_softcapping=50.0, final_logit_softcapping=3.0,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    gemma = {"kind": "rms_norm", "offset": 1.0}
    ours = program(
        blocks={
            "attention": {"scale": "16**(-1/2)", "score": "50*tanh(s/50)"},
            "feedforward": {"activation": "gelu_tanh"},
        },
        embed={"scale": "sqrt(width)"},
        sublayer={"norm": gemma, "output_norm": gemma},
        stack=[{"cycle": [
            [{"block": "attention", "set": {"pattern": "window(5)"}}, "feedforward"], ["attention", "feedforward"],
        ]}],
        norm=gemma,
        head={"softcap": 3.0},
    )  # fmt: skip
    compared("gemma2", config, ours, (*ROWS, *SANDWICH))


SCALINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"factor": 3.0}, {"rope_type": "linear", "factor": 3.0}),
    "llama3": (
        {"factor": 8.0, "original": 16},
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0},
    ),
    "llama3, other turns": (
        {"factor": 2.5, "original": 20, "low_frequency": 0.5, "high_frequency": 2.0},
        {"rope_type": "llama3", "factor": 2.5, "original_max_position_embeddings": 20, "low_freq_factor": 0.5,
         "high_freq_factor": 2.0},
    ),
    "yarn": ({"factor": 4.0, "original": 64},
             {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    "yarn, all keys": (
        {"factor": 4.0, "original": 40, "beta_fast": 8.0, "beta_slow": 0.5, "truncate": False,
         "attention_factor": 0.7},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40, "beta_fast": 8.0,
         "beta_slow": 0.5, "truncate": False, "attention_factor": 0.7},
    ),
    "yarn, no ramp": ({"factor": 4.0, "original": 5, "beta_fast": 2.0},
                      {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 5, "beta_fast": 2.0}),
    "ntk": ({"factor": 4.0}, {"rope_type": "dynamic", "factor": 3.0}),
}  # fmt: skip


def scaling(name: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Our keys, theirs, and how many positions their model has: `dynamic` at twice its positions is the fixed change
    of the base by factor + 1."""
    own, their = SCALINGS[name]
    return {"kind": name.partition(",")[0]} | own, their | {"rope_theta": 100.0}, 12 if name == "ntk" else 96


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_scaling(name: str) -> None:
    own, rope, positions = scaling(name)
    sizes = SHARED | {"max_position_embeddings": positions, "head_dim": 16}
    config = transformers.LlamaConfig(**sizes, rope_parameters=rope)
    ours = program(dims={"head": 16}, blocks={"attention": {"rotary": {"base": 100.0, "scaling": own}}})
    compared("llama", config, ours, (*ROWS, *PRE))


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_scaling_of_a_part_of_each_head(name: str) -> None:
    own, rope, positions = scaling(name)
    neox({"base": 100.0, "dims": "head // 2", "scaling": own}, rope | {"partial_rotary_factor": 0.5}, positions)


@pytest.mark.parametrize("part", [0.25, 0.5])
def test_gpt_neox_turns_a_part_of_each_head(part: float) -> None:
    neox({"dims": int(16 * part)}, {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": part})


@pytest.mark.parametrize("ignored", [-100, 7, None])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.1, 0.0), (0.0, 0.01), (0.3, 0.2)])
def test_smoothed_targets_and_z_loss(smoothing: float, z_loss: float, ignored: int | None) -> None:
    """Of a model without layers, against torch's own cross-entropy; ignored: None for targets that all count."""
    head = {"label_smoothing": smoothing, "z_loss": z_loss} | ({"ignore": ignored} if ignored is not None else {})
    block = {"block": {"kind": "mlp", "activation": "none", "bias": False}, "norm": "none"}
    ours = built(Model.model_validate({"name": "ends", "dims": DIMS, "head": head, "stack": [{"layer": [block]}]}))
    draw = torch.Generator().manual_seed(0)
    names = {name: tuple(ours.sizes[d] for d in p.dims) for name, (p, _) in ours.logical_names().items()}
    theirs = {n: torch.randn(s, generator=draw, dtype=torch.float64).requires_grad_() for n, s in names.items()}
    tokens, targets = integers(1, 64, 2, 24), integers(2, 64, 2, 24)
    if ignored is not None:
        targets[..., ::3] = ignored
    x = theirs["embed.tokens"][tokens]
    x = x + x @ theirs["layers.0.mlp.up.weight"] @ theirs["layers.0.mlp.down.weight"]
    logits = x @ theirs["head.weight"]
    rows, wanted = logits.flatten(0, 1), targets.flatten()
    loss = F.cross_entropy(rows, wanted, ignore_index=-100 if ignored is None else ignored, label_smoothing=smoothing)
    counts = wanted != ignored
    loss = loss + z_loss * rows.logsumexp(-1)[counts].square().mean()
    table = tuple((n.replace("layers.0.", "layers.{}."),) * 2 + ("same",) for n in theirs)
    agree(ours, table, theirs, {"tokens": tokens, "targets": targets}, {"loss": loss, "logits": logits})
