"""What the sweep draws from: for each key of the language, values that differ in what they make the compiler do."""

from typing import Any

Options = list[Any]

BOTH_WAYS: Options = [
    "all", "band(2, 1)", "dilated_band(2, 1, 2)", "longformer(2, 1, 2)", "prefix(3)", "block_diagonal(3)",
    "fixed(3, 1)", "strided(3)", "rows(2) or k <= q", "cols(2)", "columns(4, 1, 2)", "not window(2)", "same_segment",
    "valid", "valid and same_segment", "blocks(3, [all, [0, 1, 1], [2], [1, 0]])", "-2 <= q - k <= 2", "q != k",
    "chunks_before(3) or block_diagonal(3)", "k % 2 == h % 2", "q + k < seq", "heads(all, not cols(1))",
    "heads(same_segment, valid and band(2, 2))", "strided(2) and valid", "same_segment or cols(1)",
    "on_heads(0, 1, all) or valid and block_diagonal(2)", "not same_segment or k == q",
]  # fmt: skip
"""Patterns that see later keys too."""

CAUSAL: Options = [
    "causal", "strict_causal", "window(3)", "window_inclusive(2)", "window_before(3)", "dilated(3, 2)", "false",
    "causal and fixed(3, 1)", "causal and fixed_with_zero(3, 1)", "causal and fixed_heads(4, 1, 2)", "window(99)",
    "causal and strided(3)", "chunks_before(3)", "heads(window(3), causal and strided(3))",
    "on_heads(0, 1, window(2)) or causal and k < 3", "causal and same_segment", "causal and valid",
    "0 <= q - k < 2*head", "causal and not window(2)", "causal and (window(2) or cols(2))", "k == q",
    "causal and q // 3 <= k // 3 + h", "causal and k % 3 == q % 3", "window(seq // 2)",
    "causal and same_segment and (window(3) or strided(2))", "window(4) and valid",
    "heads(window(2), causal and valid)", "causal and not same_segment",
]  # fmt: skip

ACROSS: Options = ["all", "valid", "valid and q - k < 3 and k - q < 3", "same_segment", "k <= q + 2", "k % 2 == h % 2"]
"""Patterns from one stream to another."""

ROWS: Options = [
    {"documents": True}, {"padding": True}, {"documents": True, "padding": True}, {"positions": "given"},
    {"documents": True, "positions": "given"}, {"padding": True, "positions": "counted"},
]  # fmt: skip
WITHIN: Options = [
    "causal", "strict_causal", "window(3)", "causal and strided(2)", "heads(window(2), causal)", "k == q",
    "dilated(3, 2)", "causal and same_segment", "causal and valid", "causal and not window(2)", "window(99)",
]  # fmt: skip
"""Patterns of rows of documents: what they show does not depend on where in its row a document stands."""
WITHIN_BOTH: Options = ["all", "band(2, 1)", "strided(2)", "not window(2)", "heads(all, band(1, 1))", "same_segment"]

SCORE: Options = [
    "0.5*s", "2*s", "s + 1", "0", "s - 0.1*(q - k)", "30*tanh(s/30)", "s*(1 + h)", "s - abs(q - k)/seq", "s*s",
    "where(q - k > 2, s - 1, s)", "s - 1 if q - k > 2 else s", "max(s, -1)", "s*cos(q - k) + k % 3", "s/width + h",
    "s - log(1 + abs(q - k))", "s - (h + 1)*(q - k)/heads", "s",
]  # fmt: skip
BACKWARD_SCORE: Options = ["s*(1 + h) - log(1 + q - k)", "s - sqrt(q - k)", "s + log(q - k + 1)/(1 + h)"]
"""Scores without a value after the query: a masked pair must not matter whatever the score is there."""

RELATIVE: Options = [
    {}, {"shared": True}, {"biases": []}, {"biases": ["v"], "kind": "sinusoid"}, {"biases": ["u", "v"]},
    {"kind": "buckets"}, {"kind": "buckets", "buckets": 8, "max_distance": 7, "shared": True}, {"kind": "slopes"},
    {"kind": "buckets", "buckets": 4, "max_distance": 5}, {"kind": "slopes", "learned": True},
    {"kind": "slopes", "learned": True, "shared": True},
]  # fmt: skip

REMEMBERED: Options = [
    "causal", "strict_causal", "window(3)", "0 <= q - k <= 2", "causal and strided(2)", "heads(window(2), causal)",
    "all", "band(2, 1)", "k == q", "causal and not window(2)", "false",
]  # fmt: skip
"""Patterns of a model with a memory: in q - k, bounded by `KEEP` or not at all."""
KEEP: Options = [2, 3, "most"]
MEMORY_TOKENS: Options = [
    {"keep": 1}, {"keep": 2}, {"keep": 2, "through": 1}, {"keep": 3, "written": True, "sees": "all"},
    {"keep": 2, "written": False}, {"keep": 2, "written": False, "sees": "all"}, {"keep": 1, "sees": "memory"},
]  # fmt: skip
WINDOWS: dict[str, Options] = {
    "heads": [1, 2], "head": [2, 4], "gate": ["fixed", "lstm"], "cell": ["dual", "single", "skip"], "inner": [6],
    "activation": ["gelu", "max(x, 0)**2", "silu"], "buckets": [4, 8], "max_distance": [17, 64],
}  # fmt: skip
AMONG: Options = [*REMEMBERED, "q // 3 == k // 3", "k < 2 or causal", "rows(2)", "fixed(3, 1)"]
"""Patterns of tokens among which memory tokens stand."""
FAR: Options = ["s - 0.1*(q - k)", "30*tanh(s/30)", "s*(1 + h)", "s*cos(q - k) + h", "0.5*s"]

ATTENTION_DROPOUT: Options = [0.1, 0.5]
SCALE: Options = [0.3, "1/head", "4/seq", "-1/8", 1.0, "sqrt(head)/heads"]

ACTIVATION: Options = [
    "gelu", "gelu_tanh", "gelu_sigmoid", "relu", "silu", "tanh", "sigmoid", "none", "max(x, 0)**2", "x", "1", "abs(x)",
    "x if x > 0 else 0.1*x", "where(x > 0, x, 0.1*x)", "x*sigmoid(1.7*x)", "x/width", "x**3", "logaddexp(x, 0)",
    "erf(x) + sin(x)", "min(max(x, -1), 1)", "x*rsqrt(1 + x*x)", "exp(-abs(x))*sign(x)", "softplus(x) - log(2)",
    "-logsigmoid(-x)", "relu2(x) + relu(x)", "x - floor(x)", "mod(x, 2)", "1/(1 + x**2)",
    "0.5*x if x > 1 and x < 2 or not x > -1 else tanh(x) + pi",
]  # fmt: skip

CELL: Options = [  # inputs, state, parameters, let, update, output
    (["z", "c"], {"h": 0.0}, {}, {}, {"h": "(1 - sigmoid(z))*h + sigmoid(z)*c"}, "h"),
    ([], {"h": 0.5}, {}, {}, {"h": "0.9*h + x"}, "h + x"),
    ([], {"h": 0.0}, {"d": "ones"}, {"n": "sigmoid(d)*h + x"}, {"h": "n"}, "n"),
    (["u", "g"], {"a": 0.0, "b": 1.0}, {"p": "ones"}, {}, {"a": "sigmoid(g)*a + u", "b": "b/2 + p*a"}, "a*b + x"),
    (["u"], {"h": 0.0}, {"w": {"normal": 0.3}}, {}, {"h": "tanh(u + w*h)"}, "h"),
    (
        ["u", "f"], {"c": 0.0}, {"v": "ones", "b": "zeros"}, {"g": "sigmoid(f + v*c + b)", "n": "g*c + (1 - g)*u"},
        {"c": "n"}, "mask*n + (1 - mask)*x",
    ),
    (["u"], {"h": -1.0}, {}, {}, {"h": "max(h, u)"}, "h"),
    (["u"], {"h": 0.0}, {}, {}, {"h": "u"}, "h"),
    ([], {"h": 0.0}, {}, {}, {"h": "x"}, "h"),
    (["u"], {"h": 0.0, "g": 0.0}, {}, {}, {"h": "u", "g": "h"}, "g"),
    (["u", "d"], {"m": 0.0}, {}, {}, {"m": "logaddexp(m - softplus(d), u)"}, "m"),
    (
        ["k", "v"], {"a": 0.0, "b": 0.0, "m": -30.0}, {"w": "ones"}, {"n": "max(m - exp(w), k)"},
        {"a": "exp(m - exp(w) - n)*a + exp(k - n)*v", "b": "exp(m - exp(w) - n)*b + exp(k - n)", "m": "n"}, "a/(b + 1)",
    ),
    (["u"], {"h": 0.0, "t": 0.0}, {}, {}, {"h": "h + u/(1 + t)", "t": "t + 1"}, "h if t > 2 else u"),
    (["u"], {"h": 1.0}, {}, {}, {"h": "h"}, "u*h"),
    (["u"], {}, {}, {}, {}, "u*x"),
    (["u"], {"h": 0.0}, {}, {}, {"h": "h/2 + u"}, "1"),
    (["u", "v"], {"a": 0.0, "b": 0.0}, {}, {}, {"a": "v", "b": "v"}, "a + b + u"),
    (["u"], {"h": 0.0}, {}, {}, {"h": "0.9*h + u"}, "next(h)"),
    (["u", "g"], {"a": 0.0, "b": 0.0}, {"p": "ones"}, {}, {"a": "b", "b": "tanh(a + p*u)"}, "next(b)*sigmoid(g) + a"),
]  # fmt: skip

_KEY, _VALUE, _STATE = ["heads", "head"], ["heads", "inner"], ["heads", "head", "inner"]
TENSORS: Options = [  # what is computed in chunks, and what is not; `norm`, `gate` and `chunk` are drawn apart
    {
        "inputs": {"q": _KEY, "k": _KEY, "v": _VALUE, "g": ["heads"]},
        "parameters": {"b": {"dims": ["heads"], "init": {"constant": 1.0}, "rates": {"weight_decay": 0.0}}},
        "state": {"s": {"dims": _STATE, "init": 0.25}}, "let": {"a": "sigmoid(g + b)"},
        "update": {"s": "a*s + k*v"}, "output": "sum(head, q*next(s))",
    },
    {
        "inputs": {"q": ["head"], "k": ["head"], "v": _VALUE, "g": _KEY, "z": _VALUE},
        "parameters": {"u": {"dims": _KEY, "init": "ones"}}, "state": {"s": {"dims": _STATE}},
        "let": {"w": "exp(-softplus(g))"}, "update": {"s": "w*s + k*v"}, "output": "sum(head, q*(s + u*k*v)) + z/heads",
    },
    {
        "inputs": {"q": _KEY, "k": _KEY, "v": _VALUE, "b": ["heads"]}, "parameters": {"d": {"dims": _VALUE}},
        "state": {"s": {"dims": _STATE, "init": -0.5}}, "let": {"n": "k*rsqrt(sum(head, k*k) + 1)"},
        "update": {"s": "s + sigmoid(b)*n*(v + d - sum(head, n*s))"}, "output": "sum(head, q*next(s))",
    },
    {
        "inputs": {"r": _KEY, "k": _KEY, "v": _VALUE, "w": _KEY, "e": _KEY},
        "parameters": {"c": {"dims": [], "init": "zeros"}},
        "state": {"s": _STATE, "t": {"dims": ["head"], "init": 1.0}},
        "let": {"d": "sigmoid(w + c)", "u": "tanh(e)/2"},  # u: a state that grows with its inputs is soon infinite
        "update": {"s": "d*s - tanh(r)*sum(head, u*s) + k*v", "t": "0.9*t + sum(heads, k)"},
        "output": "sum(head, r*next(s)) / (2 + tanh(sum(head, r*next(t))))",
    },
    {
        "inputs": {"q": _KEY, "k": _KEY, "v": _VALUE, "f": ["heads"], "j": ["heads"]},
        "parameters": {"b": {"dims": ["heads"], "init": "ones"}},
        "state": {"m": ["heads"], "s": _STATE, "n": {"dims": _KEY, "init": 0.0}},
        "let": {"x": "logsigmoid(f + b)", "top": "max(x + m, j)"},
        "update": {
            "m": "top", "s": "exp(x + m - top)*s + exp(j - top)*k*v", "n": "exp(x + m - top)*n + exp(j - top)*k",
        },
        "output": "sum(head, q*next(s)) / max(abs(sum(head, q*next(n))), exp(-next(m)))",
    },
    {
        "inputs": {"q": _KEY, "k": _KEY, "v": _VALUE},
        "parameters": {"p": {"dims": ["heads"], "init": {"normal": 0.5}}},
        "state": {"s": {"dims": _STATE, "init": 0.0}}, "let": {"g": "p + i(heads)/heads"},
        "update": {"s": "tanh(g*s + k*v)"}, "output": "sum(head, q*s) + v",
    },
    {
        "inputs": {"a": [], "b": ["inner"]}, "parameters": {"p": {"dims": ["inner"], "init": "ones"}},
        "state": {"c": {"dims": ["inner"], "init": 0.5}}, "let": {"g": "sigmoid(a)"}, "update": {"c": "g*c + b"},
        "output": "p*next(c)*a",
    },
]  # fmt: skip
TENSOR: dict[str, Options] = {
    "norm": ["rms_norm", "layer_norm", {"kind": "rms_norm", "offset": 1.0}, "none"],
    "gate": ["silu(i(inner) - 1.5)", "2"], "chunk": [1, 3, "head", 64],
}  # fmt: skip

WEIGHTS: Options = [
    "relu2", "relu2(s)/seq", "laplace", "s", "sigmoid(s - log(seq))", "s*exp(-abs(q - k))", "softmax", "s*s - h",
    "1/heads",
]  # fmt: skip
HEAD_ACTIVATION: Options = ["silu", "none", "tanh(x) + x/heads", "max(x, 0)"]
MIXED_CHUNK: Options = [
    {"size": 3}, {"size": 1, "divisor": "size"}, {"size": 4, "divisor": "tokens"}, {"size": 2, "divisor": "chunks"},
    {"size": "heads + 1", "divisor": "longest"}, {"size": "most"},
]  # fmt: skip
GATE: Options = ["sigmoid", "silu", "none", "2*sigmoid(x) - x/width", "max(x, 0)", "1"]
GATE_BIAS: Options = [["gate"], ["query", "gate", "output"], False]
SYSTEM: dict[str, Options] = {
    "states": [1, 3, "heads"], "discretisation": ["zoh", "bilinear", "none"], "shared": [True], "pairs": [False, True],
    "poles": ["lin", "inv", "legs", "real", "random"], "imaginary": ["free", "none"], "chunk": [1, 3, 64],
    "dt": ["none", {"min": 0.01, "max": 0.2}, {"min": 0.05}], "drive": ["ones", "none", {"normal": 0.5}],
    "rates": [{"lr": 0.01}, {"lr": 0.1, "weight_decay": 0.0}], "weights": [{"normal": 0.4}, "ones"],
    "skip": ["none", "ones", {"normal": 0.5}],
}  # fmt: skip
SYSTEMS: Options = [  # keys that go together
    {}, {"kernel": "softmax", "discretisation": "zoh"}, {"imaginary": "exp", "poles": "random"},
    {"dt": {"parts": 2, "max": 0.3}, "discretisation": "zoh", "imaginary": "free", "poles": "lin"}, {"kernel": "exp"},
]  # fmt: skip
STATE_SPACE: dict[str, Options] = {
    "activation": ["gelu", "tanh"], "output": ["glu", "linear"], "bias": [True, False, ["output", "input"]],
}  # fmt: skip
STATE_SPACES: Options = [
    {}, {"output": "none"}, {"channels": "width"}, {"input": "gelu", "channels": 3, "gate": "gelu", "inner": 5},
    {"input": "none", "channels": "heads"}, {"gate": "silu", "bias": ["gate"]},
]  # fmt: skip
H3: dict[str, Options] = {
    "head": [1, 2, 4], "taps": [1, 3, "most"], "shift": [{"normal": 0.5}, "ones"], "bias": [True, False],
}  # fmt: skip

MATRICES: Options = [  # cells that multiply by matrices; `norm`, `chunk` and `direction` are drawn apart
    {
        "inputs": {"f": _KEY, "z": _KEY},
        "matrices": {
            "rf": {"over": ["head"], "to": ["head"], "each": ["heads"]}, "rz": {"over": _KEY, "init": {"normal": 0.5}},
        },
        "state": {"h": {"dims": _KEY, "init": 0.25}}, "let": {"g": "sigmoid(f + rf(h))"},
        "update": {"h": "g*h + (1 - g)*tanh(z + rz(h))"}, "output": "next(h)",
    },
    {
        "inputs": {"u": ["inner"], "p": ["head"]},
        "matrices": {
            "a": {"over": ["inner"], "to": ["head"]}, "b": {"over": ["head"], "to": ["inner"], "init": "ones"},
        },
        "parameters": {"d": {"dims": ["inner"], "init": "ones"}}, "state": {"c": ["inner"]},
        "let": {"m": "cumsum(head, softmax(head, p + a(c)))"}, "update": {"c": "tanh(u + b(m) + d*c/2)"},
        "output": "c + next(c)*u",
    },
    {  # linear in its state, which every place of the next one reads whole
        "inputs": {"u": _KEY}, "state": {"h": _KEY},
        "matrices": {"r": {"over": _KEY, "to": _KEY, "init": {"normal": 0.2}}, "w": _KEY},
        "update": {"h": "r(h) + w(u)"}, "output": "next(h)",
    },
    {
        "inputs": {"k": _KEY, "v": _VALUE}, "matrices": {"w": {"over": ["head"], "to": ["head"], "each": ["heads"]}},
        "state": {"s": _STATE}, "let": {"e": "softmax(head, w(k))"}, "update": {"s": "0.9*s + e*v"},
        "output": "sum(head, e*next(s)) + cumsum(inner, v)",
    },
]  # fmt: skip
MATRIX: dict[str, Options] = {
    "norm": ["rms_norm", "layer_norm"], "chunk": [1, 3, 64], "direction": ["backward", "both", "forward"],
}  # fmt: skip

RULE: Options = [
    "zeros", "ones", {"normal": 0.3}, {"uniform": "sqrt(3/width)"}, {"xavier": 1.0}, {"constant": 0.1},
    {"normal": "1/sqrt(fan_in)"}, {"uniform": "1/fan_out"},
]  # fmt: skip
ROLES = ["weight", "output", "embedding", "position", "head", "router", "experts", "bias", "norm"]

NORM: Options = [
    "layer_norm", "rms_norm", "none", {"kind": "layer_norm", "bias": False}, {"kind": "rms_norm", "eps": 0.1},
]  # fmt: skip
OFFSET: Options = [{"kind": "rms_norm", "offset": 1.0}, {"kind": "layer_norm", "offset": 0.5}]
OUTPUT_NORM: Options = [*NORM, *OFFSET]
QK_NORM: Options = [
    "rms_norm", "layer_norm", "l2", "none", {"kind": "rms_norm", "over": "projection"}, {"kind": "l2", "eps": 0.01},
    {"kind": "layer_norm", "over": "projection", "bias": False}, {"kind": "rms_norm", "over": "head", "offset": 1.0},
    {"kind": "rms_norm", "over": "each_head", "offset": 1.0}, {"kind": "layer_norm", "over": "each_head"},
    {"kind": "l2", "over": "each_head", "eps": 0.01},
    {"kind": "l2", "over": "projection"}, {"kind": "layer_norm", "over": "projection", "eps": 0.1},
]  # fmt: skip
ROTARY: Options = [  # of heads of 2 dims or 4
    {"dims": 2}, {"dims": "heads // 2 * 2", "base": 50.0}, {"dims": 2, "interleaved": True},
    {"scaling": {"kind": "linear", "factor": 2.0}}, {"scaling": {"kind": "llama3", "factor": 4.0, "original": 12}},
    {"scaling": {"kind": "yarn", "factor": 4.0, "original": 5}, "base": 100.0},
    {"scaling": {"kind": "yarn", "factor": 2.0, "original": 9, "attention_factor": 0.5}, "dims": 2},
    {"scaling": {"kind": "yarn", "factor": 8.0, "original": 6, "beta_fast": 4.0, "beta_slow": 0.1, "truncate": False}},
    {"scaling": {
        "kind": "llama3", "factor": 3.0, "original": "most", "low_frequency": 0.5, "high_frequency": 1.5,
    }, "interleaved": True},
]  # fmt: skip
LATENT: Options = [
    {"rank": 3}, {"rank": 3, "shared": 2}, {"rank": 2, "query_rank": 3, "shared": 2}, {"rank": 5, "norm": "none"},
    {"rank": "head", "query_rank": 2, "norm": "layer_norm"}, {"rank": 2, "shared": 3, "query_rank": "width"},
    {"rank": 1, "shared": 2, "norm": {"kind": "rms_norm", "eps": 0.1}}, {"rank": "inner", "shared": 1, "norm": "none"},
]  # fmt: skip
"""Of heads of 4 dims, where some are shared."""
NTK: Options = [{"scaling": {"kind": "ntk", "factor": 3.0}}]
WEIGHT_NORM: Options = ["ones", {"constant": 0.5}, {"normal": 1.0}]
RESIDUAL_SCALE: Options = ["sqrt(1/2)", 0.5, "1/heads", 1.0]
RESIDUAL: Options = ["pre", "post", "none"]

ATTENTION: dict[str, Options] = {
    "kv_heads": [1, 2],
    "value": [3, 4],
    "rotary": [True, {"base": 100.0}, {"interleaved": True}],
    "scale": SCALE,
    "heads": [2, 4, "heads"],
    "head": [2, 4],
    "bias": [False, ["query", "output"], ["key"], ["value"]],
}
MLP: dict[str, Options] = {
    "activation": ACTIVATION, "inner": [3, "2*width"], "gated": [True, False], "bias": [True, False],
}  # fmt: skip
CONVOLUTIONS: Options = [
    [{"taps": 3}], [{"taps": 2, "depthwise": True, "activation": "silu", "channels": "width"}],
    [{"taps": 1, "weight_norm": "ones"}],
    [{"taps": 1, "channels": 3, "gated": True}, {"taps": 3, "channels": 3, "dilation": 2, "weight_norm": "ones"},
     {"taps": 1, "gated": True, "weight_norm": {"constant": 0.5}}],
    [{"taps": 4, "depthwise": True, "dilation": 3, "weight_norm": "ones"}, {"taps": 2, "bias": False}],
    [{"taps": "most", "channels": "inner", "bias": False, "gated": True, "activation": "tanh"},
     {"taps": 2, "depthwise": True, "gated": True}, {"taps": "heads"}],
    [{"taps": 9, "depthwise": True, "dilation": "heads"}],
]  # fmt: skip
MOE: dict[str, Options] = {
    "top_k": [1, 2, 3, 4], "inner": [4, "inner"], "activation": ACTIVATION, "gated": [True, False],
    "bias": [True, False], "normalize": [True], "aux_loss": [0.0, 0.5],
}  # fmt: skip
GATED: Options = [  # of a gated block
    "up*x*sigmoid(x)", "(min(max(up, -1), 1) + 1)*min(x, 1)*sigmoid(1.702*min(x, 1))", "up", "tanh(up) + x",
    "up**2 - x",
]  # fmt: skip
MOE_NEWER: dict[str, Options] = {
    "router": ["sigmoid", "sigmoid", "softmax"], "choice_bias": [True], "route_scale": [2.5, 0.5],
    "shared": [{"inner": 5}, {"inner": "inner", "gate": True}], "aux": ["pooled", "sequence"], "z_loss": [0.1],
    "skip_padding": [True], "logit_bias": [True],
}  # fmt: skip
GROUPS: Options = [{"groups": 2, "groups_kept": 1}, {"groups": 2, "groups_kept": 2}, {"groups": 1, "groups_kept": 1}]
CAPACITY: Options = ["seq", "max(1, seq // experts)", "min(seq, 8)", 2, "ceil_div(seq, 2)", "seq % 2 + 1"]
PROJECTION: dict[str, Options] = {"heads": [1, 2], "alpha": [0.5, 1.0], "norm": NORM, "dropout": [0.1]}
CELL_INIT: Options = [{"up": {"normal": 0.5}}, {"down": "ones", "key_value": {"xavier": 1.0}}]

DTYPE: Options = [
    {"compute": "bf16"}, {"params": "f64", "compute": "f64", "accumulate": "f64"},
    {"params": "bf16", "compute": "bf16"}, {"params": "f16", "compute": "f32"}, {"accumulate": "f64"},
]  # fmt: skip
POSITIONS: Options = [
    [{"learned": "most"}], [{"learned": 3, "index": "i % 3"}],
    [{"learned": "most"}, {"learned": 6, "index": "i // 2"}],
]  # fmt: skip
EMBED: dict[str, Options] = {
    "positions": POSITIONS, "types": [2, 3], "scale": ["sqrt(width)", 2.0], "norm": NORM, "dropout": [0.2],
    "tokens": ["vocab", 11],
}  # fmt: skip
LANGUAGE: dict[str, Options] = {
    "tied": [True], "bias": [True], "scale": ["1/width", 3.0], "ignore": [-100, 3], "vocab": [11],
    "loss": ["cross_entropy"], "transform": [{}, {"activation": "tanh"}, {"norm": "none"}],
}  # fmt: skip
SMOOTHING: Options = [0.1, 0.5, 0.0]
Z_LOSS: Options = [1e-4, 0.1]
SOFTCAP: Options = [0.5, 3.0, 30.0]
CLASSIFY: dict[str, Options] = {"pool": ACTIVATION, "ignore": [-100, 1]}
