"""The options of a Hugging Face config: how each is read, and what of it a spec can say.

An option is a row of a family's table: its default, as transformers has it, and a reader that gives the value or raises
`Unsaid` with what to do. Nothing of a value is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from weft.errors import Problem
from weft.frontends.suggest import did_you_mean, nearest

LARGEST = 2**31 - 1
REQUIRED: Any = object()
"""The default of an option without which nothing is known."""


class Unsaid(Exception):
    """A value that is none of its kind, or that no spec says: the code, what is wrong, the way out."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


@dataclass(frozen=True)
class ConfigOption:
    """One key that changes the function. read: its value from JSON to ours. note: what is left out of the spec where
    the value is not 0, as text of a `{}`. fixed: one value alone is read."""

    read: Callable[[Any], Any]
    default: Any = REQUIRED
    note: str = ""
    fixed: bool = False


Options = Mapping[str, ConfigOption]


def size(default: Any = REQUIRED, most: int = LARGEST) -> ConfigOption:
    """A whole number of at least 1 and at most `most`; null where that is the default."""

    def read(value: Any) -> Any:
        if value is None and default is None:
            return None
        if type(value) is not int:
            raise Unsaid("W0105", f"expected a whole number, found {_shown(value)}")
        if not 1 <= value <= LARGEST:
            raise Unsaid("W0106", f"{value} is no size; a size lies in 1 .. 2**31 - 1")
        if value > most:
            raise Unsaid("W0106", f"{value} is more than {most:,}")
        return value

    return ConfigOption(read, default)


def layers(default: int) -> ConfigOption:
    """How many layers there are; each has a name, so they are not without end."""
    return size(default, most=4096)


def number(default: Any = REQUIRED, least: float = 0.0) -> ConfigOption:
    """A finite number over `least`; null where that is the default."""

    def read(value: Any) -> Any:
        if value is None and default is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise Unsaid("W0105", f"expected a number, found {_shown(value)}")
        if value <= least:
            raise Unsaid("W0106", f"{value} must be over {least:g}")
        return value

    return ConfigOption(read, default)


def rate(default: Any = 0.0, note: str = "") -> ConfigOption:
    """A share of what is dropped: 0 or more, below 1; null where that is the default."""

    def read(value: Any) -> Any:
        if value is None and default is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise Unsaid("W0106", f"expected a number from 0 to below 1, found {_shown(value)}")
        return float(value)

    return ConfigOption(read, default, note)


UNDROPPED = "{} is left out: weft drops nothing there, so training differs in that alone"
"""The note on a dropout that the language has not."""


def flag(default: bool) -> ConfigOption:
    """true or false."""

    def read(value: Any) -> bool:
        if type(value) is not bool:
            raise Unsaid("W0105", f"expected true or false, found {_shown(value)}")
        return value

    return ConfigOption(read, default)


def whole(default: int) -> ConfigOption:
    """A whole number of at least 0; what null stands for is `default`."""

    def read(value: Any) -> int:
        if value is None:
            return default
        if type(value) is not int or not 0 <= value <= LARGEST:
            raise Unsaid("W0105", f"expected a whole number of at least 0, found {_shown(value)}")
        return value

    return ConfigOption(read, default)


def only(said: Any, why: str, *more: Any) -> ConfigOption:
    """One value that a spec says (`more`: others that mean the same); `why` is what to do about any other."""

    def read(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in (said, *more)):
            raise Unsaid("W0104", f"{_shown(value)} is supported only as {_shown(said)}", why)
        return said

    return ConfigOption(read, said, fixed=True)


def choice(known: Mapping[str, Any], default: Any = REQUIRED) -> ConfigOption:
    """One of the names that a spec has a word for."""

    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            hint = did_you_mean(value, known) if isinstance(value, str) else f"known: {', '.join(known)}"
            raise Unsaid("W0104", f"{_shown(value)} is nothing that a spec says", hint)
        return known[value]

    return ConfigOption(read, default)


ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "gelu_sigmoid", "relu": "relu", "relu2": "max(x, 0)**2", "silu": "silu", "swish": "silu",
    "tanh": "tanh", "sigmoid": "sigmoid", "linear": "none",
}  # fmt: skip
"""transformers' names of activations, and the spec's."""


def activation(default: str) -> ConfigOption:
    """An activation by transformers' name; a value is the spec's word for it."""
    return choice(ACTIVATIONS, default)


def sizes(default: Any = REQUIRED, even: bool = False) -> ConfigOption:
    """A size, or a list of sizes, one a layer: always a list, of one for all layers alike. even: each has halves."""
    one = size()

    def read(value: Any) -> list[int]:
        found = [one.read(entry) for entry in (value if isinstance(value, list) and value else [value])]
        if even and any(n % 2 for n in found):
            raise Unsaid("W0106", f"{_shown(value)} is odd, and a half goes to each side")
        return found

    return ConfigOption(read, default)


IGNORED = frozenset({
    "_attn_implementation", "_commit_hash", "_name_or_path", "architectures", "attn_implementation", "auto_map",
    "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cache_implementation", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "gradient_checkpointing", "id2label", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torch_dtype",
    "torchscript", "transformers_version", "typical_p", "use_bfloat16", "use_cache",
    # how a feed-forward is cut changes no result
    "chunk_size_feed_forward",
})  # fmt: skip
"""Keys of any config that do not change the function: how text is drawn, what tokens and labels are called, what runs
where. A checkpoint says its own dtype."""

UNKNOWN = "take it out if it does not change what the model computes; else weft cannot say this model"
ENCODERS = "weft imports models of one sequence, and t5; others of two are written by hand (docs/spec.md, streams)"
COMMON: Options = {
    "add_cross_attention": only(False, ENCODERS),
    "is_encoder_decoder": only(False, ENCODERS),
    "pruned_heads": only({}, "save the model with its heads in place"),
    "quantization_config": only(None, "save the weights unquantised: model.dequantize().save_pretrained(folder)"),
}
"""Options that any config may have, and one meaning of each."""


def read(data: Mapping[str, Any], options: Options, ignored: Iterable[str], what: str) -> tuple[Any, list[Problem]]:
    """Every option's value, defaults among them, and all that is wrong with `data`, each at its key."""
    options = {**COMMON, **options}
    known, problems = {*options, *IGNORED, *ignored}, list[Problem]()
    for key in data:
        if key not in known:
            near = nearest(key, [k for k in options if k not in COMMON])
            hint = f"did you mean '{near}'?" if near else UNKNOWN
            problems.append(
                Problem("W0103", f"unknown option '{key[:60]}' of a {what} config", (key,), hint, on_key=True)
            )
    values: dict[str, Any] = {}
    for key, option in options.items():
        if key not in data and option.default is REQUIRED:
            problems.append(Problem("W0102", f"missing option '{key}' of a {what} config", (), f'add "{key}": ...'))
            continue
        try:
            values[key] = option.read(data.get(key, option.default))
        except Unsaid as error:
            problems.append(Problem(error.code, f"{key}: {error.message}", (key,), error.hint))
    return values, problems


def notes(values: Mapping[str, Any], options: Options) -> list[str]:
    """What the options say and no spec does, a line each."""
    return [o.note.format(f"{key} ({values[key]:g})") for key, o in options.items() if o.note and values.get(key)]


def default(option: ConfigOption, value: Any) -> ConfigOption:
    """The same option with another default."""
    return replace(option, default=value)


def _shown(value: Any) -> str:
    """A value as JSON writes it, cut short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
