"""The corpus of broken specs: every error with its code, its place and a way out; and how errors are printed."""

from pathlib import Path

import pytest

import weft
from weft import api
from weft.errors import Place, Problem, SpecError
from weft.frontends.problems import CODES, render

BAD = Path(__file__).parent / "bad"

# file -> every problem in order: code, line, column, words of the message or of the way out.
CORPUS = {
    "a_list": [("W0105", 1, 1, 'start with `weft: 1`')],
    "a_word": [("W0105", 1, 1, 'start with `weft: 1`')],
    "activation_code": [("W0301", 6, 40, 'this form is not allowed in a formula')],
    "activation_name": [("W0301", 6, 40, "unknown name 'y'")],
    "activation_up": [("W0301", 6, 42, "unknown name 'up'")],
    "activation_unknown": [("W0301", 6, 40, "did you mean 'gelu'?")],
    "alias": [
        ("W0008", 6, 16, 'anchors are not part of a spec: &ff'),
        ("W0008", 10, 8, 'aliases are not part of a spec: *ff'),
    ],
    "attention_gate": [("W0301", 5, 55, "did you mean 'sigmoid'?")],
    "attention_gate_bias": [("W0108", 5, 14, '`bias` of a `gate` goes with one')],
    "attention_shared": [("W0108", 5, 14, '`latent` goes without')],
    "attention_weights_sinks": [("W0108", 5, 14, '`sinks` take part in a softmax')],
    "attention_weights_unknown": [("W0301", 5, 58, "unknown function 'relu3'")],
    "bigbird_too_short": [("W0302", 5, 41, 'leave out the 32, or lower the largest seq')],
    "block_name_bad": [("W0107", 6, 3, "'feed-forward' is not a name")],
    "block_name_keyword": [("W0107", 6, 3, "blocks.lambda: 'lambda' is a word of Python's")],
    "block_unknown": [("W0401", 9, 24, "did you mean 'feedforward'?")],
    "blocks_key_unknown": [("W0302", 5, 41, 'give every block a row')],
    "blocks_too_few": [("W0302", 5, 53, 'too few for 64 tokens; give 3 rows, or lower')],
    "blocks_too_few_at_most": [("W0302", 6, 41, 'too few for 128 tokens; give 4 rows, or lower')],
    "boolean_yes": [("W0105", 6, 35, 'write true')],
    "cell_formula": [
        ("W0301", 10, 14, "did you mean 'sigmoid'?"),
        ("W0301", 11, 31, 'known names: c, f, mask, u, x'),
        ("W0301", 12, 17, 'write it like `a*x + b`'),
    ],
    "control_character": [("W0004", 2, 7, 'delete it')],
    "dim_by_zero": [("W0201", 3, 60, 'change a dim')],
    "dim_code": [("W0201", 3, 75, 'inner: "\'" may not stand in an expression')],
    "dim_cycle": [("W0203", 3, 79, 'give one of them a number'), ("W0203", 3, 95, 'give one of them a number')],
    "dim_function": [("W0201", 3, 64, 'known: ceil_div, min, max')],
    "dim_missing": [("W0102", 3, 7, 'dims: missing width')],
    "dim_open": [("W0201", 3, 66, 'inner: a parenthesis is not closed')],
    "dim_power": [("W0201", 3, 71, "inner: unexpected '*'")],
    "dim_rest": [("W0201", 3, 60, 'write // to round down, or change a dim')],
    "dim_too_large": [("W0204", 3, 86, 'vocab is 3000000000; a size lies in 1 ..')],
    "dim_unknown": [("W0202", 3, 66, "did you mean 'width'?")],
    "direction_character": [("W0004", 2, 10, 'delete it')],
    "dropout_one": [("W0106", 10, 21, 'sublayer.dropout: 1.0 must be under 1')],
    "dtype_unknown": [("W0104", 4, 17, "did you mean 'f16'?")],
    "empty": [("W0005", 1, 1, 'the file is empty')],
    "experts_too_few": [("W0402", 6, 47, 'top_k is 3, more than the experts there are')],
    "extends_itself": [("W0012", 1, 10, "'extends_itself.yaml' extends itself")],
    "extends_missing": [("W0012", 1, 10, "did you mean 'base.yaml'?")],
    "extends_outside": [("W0012", 1, 10, 'copy it next to the spec')],
    "extends_problem": [("W0202", 1, 66, "did you mean 'width'?"), ("W0103", 3, 32, "did you mean 'pattern'?")],
    "groups_alone": [("W0108", 6, 16, 'give both of `groups` and `groups_kept`')],
    "groups_kept_few": [("W0402", 6, 90, 'do not hold 3 experts')],
    "groups_unequal": [("W0402", 6, 74, 'not 3 equal groups of two or more')],
    "h3_head": [("W0402", 7, 11, "heads of 5 do not divide the width 32")],
    "head_empty": [("W0106", 10, 7, 'head: a list needs at least 1 entry')],
    "head_kind": [("W0104", 10, 14, "did you mean 'language'?")],
    "heads_do_not_divide": [("W0402", 5, 59, 'change one of them')],
    "init_formula": [("W0301", 10, 32, "did you mean 'fan_in'?")],
    "init_two_rules": [("W0108", 10, 16, 'init.weight: give exactly one of normal,')],
    "init_unknown_role": [("W0103", 10, 8, "did you mean 'weight'?")],
    "key_is_a_list": [("W0010", 10, 3, 'write `name: value`')],
    "key_twice": [("W0007", 3, 1, 'remove one of them')],
    "key_twice_nested": [("W0007", 9, 5, 'remove one of them')],
    "kind_missing": [("W0102", 6, 16, "missing key 'kind' in blocks.feedforward")],
    "latent_key": [("W0102", 5, 57, 'add `rank: ...`'), ("W0103", 5, 58, "did you mean 'rank'?")],
    "latent_norms": [("W0108", 5, 14, 'its own `norm` is of the latents')],
    "latent_odd": [("W0402", 5, 75, 'an even number')],
    "latent_rotary": [("W0108", 5, 14, 'turn its `shared` dims: say how many')],
    "latent_rotary_dims": [("W0108", 5, 14, '`shared` says which dims turn')],
    "latent_shared": [("W0402", 5, 75, 'a number below 8')],
    "layer_and_cycle": [("W0108", 8, 5, 'stack[0]: give `layer` or `cycle`, one of the')],
    "layer_number": [("W0105", 9, 24, 'stack[0].layer[1]: expected the name of a')],
    "many": [
        ("W0103", 10, 1, "did you mean 'small'?"),
        ("W0104", 11, 18, "did you mean 'layer_norm'?"),
        ("W0106", 11, 38, 'sublayer.dropout: 2 must be under 1'),
        ("W0105", 12, 14, 'head.tied: expected true or false, found 1'),
        ("W0105", 12, 24, 'head.vocab: expected a whole number, a dim,'),
    ],
    "memory_cell": [("W0403", 8, 9, 'make it an attention')],
    "memory_empty": [("W0106", 4, 16, 'memory.keep: 0 must be at least 1')],
    "memory_globals": [("W0403", 6, 55, 'leave one of them out')],
    "memory_keep": [("W0201", 4, 16, "did you mean 'past'?")],
    "memory_metadata": [("W0403", 6, 41, 'a pattern without metadata')],
    "memory_of": [("W0104", 4, 14, "'keys' is not one of hidden, tokens")],
    "memory_once": [("W0405", 4, 28, 'name a stream that grows')],
    "memory_place": [("W0403", 6, 41, 'write it in q - k, as')],
    "memory_plan": [("W0403", 6, 38, 'leave one of them out')],
    "memory_positions": [("W0403", 8, 20, '`relative` or `rotary` positions')],
    "memory_reach": [("W0402", 6, 41, 'memory: {keep: 19}, or a shorter reach')],
    "memory_score": [("W0403", 6, 59, 'write it in q - k')],
    "memory_stream": [("W0102", 4, 9, 'one of source, target')],
    "memory_stream_unknown": [("W0405", 4, 30, 'streams: seq')],
    "memory_through": [("W0106", 4, 29, 'must be at least 0')],
    "memory_tokens_across": [
        ("W0403", 10, 54, 'a pattern without metadata'), ("W0403", 11, 54, 'leave out q and k'),
        ("W0403", 11, 68, 'leave out q and k'),
    ],
    "memory_tokens_cell": [("W0403", 8, 9, 'make it an attention')],
    "memory_tokens_globals": [("W0403", 6, 58, 'leave one of them out')],
    "memory_tokens_kind": [("W0108", 4, 9, '`of: tokens`')],
    "memory_tokens_metadata": [("W0403", 6, 41, 'a pattern without metadata')],
    "memory_tokens_padding": [("W0403", 8, 54, 'leave it out')],
    "memory_tokens_rows": [("W0403", 8, 1, 'leave out `rows`, or the memory')],
    "memory_tokens_score": [("W0403", 6, 56, 'write it in q - k')],
    "memory_tokens_through": [("W0108", 4, 9, 'the same in each segment')],
    "memory_tokens_unread": [("W0403", 4, 1, 'give a stage of its stream an attention')],
    "memory_weights": [("W0403", 6, 61, 'write it in q - k')],
    "memory_unread": [("W0403", 4, 1, 'give a stage of its stream an attention')],
    "mixed_chunk_divisor": [("W0104", 5, 82, "did you mean 'tokens'?")],
    "mixed_chunk_documents": [("W0403", 6, 62, 'leave out `documents` of the rows')],
    "mixed_chunk_memory": [("W0403", 6, 62, 'leave out `memory`')],
    "mixed_chunk_size": [("W0102", 5, 62, 'add `size: ...`')],
    "name_code": [("W0107", 2, 7, '\'x"; import os#\' is not a name')],
    "name_missing": [("W0102", 1, 1, 'add `name: ...`')],
    "name_upper_case": [("W0107", 2, 7, "'Broken' is not a name")],
    "not_utf8": [("W0003", 2, 9, 'save it as UTF-8')],
    "number_text": [("W0105", 3, 86, 'dims.vocab: expected a whole number, a dim,')],
    "number_too_long": [("W0011", 3, 86, 'a number of more than 18 digits')],
    "number_underscore": [("W0105", 6, 35, 'write 1000')],
    "offset_text": [("W0105", 10, 50, 'expected a number')],
    "on_heads_none": [("W0302", 5, 41, 'write on_heads(0, 4, window(128))')],
    "opaque": [("W0108", 6, 16, 'blocks.feedforward: an opaque block wraps a')],
    "parallel_norms": [("W0403", 9, 50, 'leave out this one, or the shared one')],
    "parallel_one": [
        ("W0106", 9, 24, 'needs at least 2'),
        ("W0103", 9, 37, 'keys: norm, parallel'),
        ("W0102", 9, 47, 'add `block: ...`'),
        ("W0103", 9, 48, "did you mean 'parallel'?"),
    ],
    "parallel_residual": [("W0403", 9, 54, '`residual: pre` in each of them')],
    "pattern_and_plan": [("W0108", 5, 14, 'blocks.attention: give `pattern` or `plan`,')],
    "pattern_code": [("W0302", 5, 46, '"\'" may not stand in a pattern')],
    "pattern_missing": [("W0108", 5, 14, 'blocks.attention: give `pattern` or `plan`,')],
    "pattern_syntax": [("W0302", 5, 51, 'cannot read it: invalid syntax')],
    "pattern_unknown": [("W0302", 5, 52, "did you mean 'window'?")],
    "pattern_unknown_dim": [("W0302", 5, 54, "unknown name 'strid'")],
    "pattern_values": [("W0302", 5, 53, 'write window(width)')],
    "plan_block": [("W0201", 5, 46, "unknown dim 'blok'")],
    "plan_table_key": [("W0302", 5, 57, 'key blocks 0 to 3, not 4; give every block a row')],
    "plan_table_rows": [("W0402", 5, 57, 'give 2 rows, one for each block but the first')],
    "plan_window_even": [("W0108", 5, 57, 'blocks.attention.plan.window: the window must')],
    "position_index": [("W0301", 10, 48, "unknown name 'strid'")],
    "positions_short": [("W0402", 10, 31, 'learned: seq, or another index')],
    "qk_norm_unknown": [("W0104", 5, 58, "did you mean 'rms_norm'?")],
    "qk_norm_values": [("W0104", 5, 75, "did you mean 'head'?"), ("W0106", 5, 87, 'must be over 0')],
    "recurrence_name_twice": [("W0108", 7, 5, 'blocks.feedforward: c: a name may stand for')],
    "recurrence_update": [("W0108", 7, 5, 'blocks.feedforward: `update` must give the')],
    "residual_scale": [
        ("W0301", 7, 28, 'divides by zero'),
        ("W0403", 9, 74, 'write it in `sublayer`'),
    ],
    "residual_unknown": [("W0104", 10, 22, "did you mean 'pre'?")],
    "relative_buckets": [("W0402", 5, 59, '6 buckets do not hold the distances up to 2')],
    "relative_kind": [("W0108", 5, 59, '`buckets` goes with buckets, not with slopes')],
    "relative_biases": [("W0104", 5, 72, "'w' is not one of u, v")],
    "relative_odd": [("W0402", 5, 59, 'make `width` even')],
    "relative_rotary": [("W0108", 5, 14, '`relative` of kind `sinusoid` goes without `rotary`')],
    "rotary_dims": [("W0402", 5, 64, 'an even number up to 8')],
    "rotary_dims_odd": [("W0402", 5, 64, 'not 3 of its dims')],
    "rotary_dynamic": [("W0108", 5, 74, 'with the factor of the longest run')],
    "rotary_ntk": [("W0402", 5, 76, 'turn 4 dims or more')],
    "rotary_odd": [("W0402", 5, 57, 'make `head` even')],
    "rotary_scaling_betas": [("W0108", 5, 67, '`beta_fast` must be over `beta_slow`')],
    "rotary_scaling_key": [("W0108", 5, 67, '`original` goes with yarn and llama3, not with linear')],
    "rotary_scaling_original": [("W0108", 5, 67, 'yarn needs `original`')],
    "rotary_scaling_turns": [("W0106", 5, 90, 'must be at least 1')],
    "rotary_scaling_unknown": [("W0104", 5, 74, "did you mean 'llama3'?")],
    "router_unknown": [("W0104", 6, 64, "did you mean 'sigmoid'?"), ("W0102", 6, 80, 'add `inner: ...`')],
    "rows_capacity": [("W0403", 7, 45, 'depends on the others; `capacity: none`')],
    "rows_key": [("W0103", 4, 8, "did you mean 'documents'?")],
    "rows_label": [("W0403", 10, 7, 'leave out `documents`, or this head')],
    "rows_memory": [("W0403", 4, 1, 'leave out `rows`, or the memory')],
    "rows_padding_capacity": [("W0403", 7, 38, '`capacity: none` takes all that come')],
    "rows_pattern": [
        ("W0403", 6, 41, 'the pattern depends on where in its row'),
        ("W0403", 6, 74, 'the score depends on where in its row'),
    ],
    "rows_plan": [("W0403", 6, 38, 'the plan depends on where in its row')],
    "rows_unread": [("W0403", 4, 19, "nothing reads the positions of 'seq'")],
    "runtime_align": [("W0205", 3, 23, 'change seq, or `runtime.seq`')],
    "runtime_max": [("W0205", 3, 15, 'change batch, or `runtime.batch`')],
    "runtime_other": [("W0104", 10, 11, "runtime.width: 'width' is not one of batch,")],
    "scale_unknown": [("W0301", 5, 63, "did you mean 'head'?")],
    "score_syntax": [("W0301", 5, 64, 'write it like `a*x + b`')],
    "set_inline": [("W0403", 9, 39, 'write the keys in the block itself')],
    "set_unknown": [("W0103", 9, 38, "did you mean 'pattern'?")],
    "size_fraction": [("W0105", 3, 34, 'dims.width: expected a whole number, found')],
    "size_negative": [("W0106", 3, 34, 'dims.width: -32 must be at least 1')],
    "size_zero_expression": [("W0201", 3, 64, 'inner: the size is 0; a size lies in 1 ..')],
    "small_does_not_work": [("W0201", 10, 16, 'width: the size is 0; a size lies in 1 ..')],
    "small_unknown": [("W0202", 10, 9, "unknown dim 'sequence' (with --small)")],
    "smoothing_one": [("W0106", 10, 25, 'must be under 1'), ("W0106", 10, 36, 'must be at least 0')],
    "softcap_zero": [("W0106", 10, 17, 'must be over 0')],
    "stack_empty": [("W0106", 7, 8, 'stack: a list needs at least 1 entry')],
    "stack_missing": [("W0102", 1, 1, 'add `stack: ...`')],
    "stream_context": [("W0405", 10, 51, "did you mean 'source'?")],
    "stream_embed": [("W0403", 15, 1, 'write it as `streams.<name>.embed`')],
    "stream_grows": [("W0405", 8, 52, "leave out `once` of 'source'")],
    "stream_head_missing": [("W0102", 14, 7, 'one of source, target')],
    "stream_late": [("W0405", 10, 51, 'move them before it')],
    "stream_length_missing": [("W0202", 5, 20, "did you mean 'source'?")],
    "stream_length_twice": [("W0402", 6, 20, 'a dim of its own; two may have the same size')],
    "stream_like_itself": [("W0402", 6, 42, 'leave out `like` in one of them')],
    "stream_name": [("W0107", 6, 3, 'give the stream another name')],
    "stream_of_stage_missing": [("W0102", 12, 5, 'one of source, target')],
    "stream_unknown": [("W0405", 13, 14, "did you mean 'target'?")],
    "stream_unread": [("W0403", 5, 3, 'give a block `context: source`')],
    "syntax_at": [("W0001", 2, 7, 'quote a value that starts with @')],
    "syntax_bracket": [("W0001", 4, 5, 'a bracket or brace is not closed')],
    "syntax_colon": [("W0001", 3, 15, "quote a value that holds ': '")],
    "syntax_indent": [("W0001", 4, 2, 'not YAML: while parsing a block mapping did')],
    "syntax_tab": [("W0001", 3, 1, 'indent with spaces, not tabs')],
    "tag": [("W0009", 2, 7, 'write the plain value')],
    "tensor_dims": [
        ("W0202", 7, 25, "did you mean 'key'?"),
        ("W0402", 7, 47, 'a second dim of this size under another name'),
        ("W0403", 7, 57, 'give it a dim of its own'),
        ("W0403", 8, 31, "'seq' cannot be a dim of a cell"),
    ],
    "tensor_formula": [
        ("W0301", 10, 16, 'write sum(heads, ..), sum(key, ..)'),
        ("W0301", 11, 13, 'sum takes a dim and what to sum along it'),
        ("W0301", 12, 11, "unknown function 'next'"),
    ],
    "space_options": [
        ("W0403", 7, 5, "use `poles: random`"),
        ("W0403", 7, 47, "use `zoh`, or `kernel: exp`"),
        ("W0403", 7, 85, "use one"),
    ],
    "space_output": [("W0402", 9, 13, "use `output: linear`")],
    "space_steps": [
        ("W0108", 7, 18, "`min` is over `max`"),
        ("W0104", 7, 36, "'some' is not one of"),
        ("W0106", 7, 50, "must be at least 1"),
    ],
    "tensor_gate": [
        ("W0403", 7, 38, "'heads' is a dim already"),
        ("W0403", 9, 16, 'give it another name'),
        ("W0403", 12, 11, 'read it in `output`'),
    ],
    "tensor_idle": [("W0403", 7, 70, "no formula reads 'g'"), ("W0403", 8, 21, 'use it or leave it out')],
    "tensor_matrix": [
        ("W0402", 8, 44, 'a second dim of this size under another name'),
        ("W0202", 8, 57, "did you mean 'heads'?"),
        ("W0402", 8, 90, "'unit' has a matrix for each place and is summed or made too"),
    ],
    "tensor_matrix_call": [
        ("W0403", 8, 40, "'silu' is a function of formulas"),
        ("W0301", 10, 14, 'r is a matrix; write r(..)'),
        ("W0301", 10, 22, 'takes one value, found 2'),
        ("W0301", 10, 36, 'write softmax(heads, ..), softmax(unit, ..)'),
        ("W0301", 10, 51, 'cumsum takes a dim and a value that has it'),
    ],
    "tensor_matrix_dims": [("W0402", 10, 17, 'give it a value over unit')],
    "tensor_matrix_idle": [("W0403", 8, 30, "no formula reads 'w'")],
    "tensor_sum": [("W0402", 10, 13, 'leave it out, or multiply by key')],
    "tensor_twice": [("W0108", 6, 5, 'norm: a name may stand for one thing only')],
    "tensor_update": [("W0402", 9, 17, 'sum along it, or add it to the dims of s')],
    "too_deep": [("W0002", 10, 40, 'nested deeper than 32 levels')],
    "too_many_parameters": [("W0204", 3, 7, 'make its dims smaller')],
    "two_documents": [("W0006", 10, 1, 'one file holds one spec')],
    "unknown_key": [("W0103", 10, 1, "unknown key 'optimizer' in the spec")],
    "unknown_key_in_block": [("W0103", 5, 49, "did you mean 'kv_heads'?")],
    "unknown_key_typo": [("W0103", 10, 1, "did you mean 'small'?")],
    "unknown_kind": [("W0104", 6, 23, "did you mean 'mlp'?")],
    "version_missing": [("W0101", 1, 1, 'write `weft: 1` first')],
    "version_newer": [("W0101", 1, 7, 'a newer weft reads this file')],
    "version_text": [("W0101", 1, 7, 'write `weft: 1`')],
    "windows_align": [("W0402", 8, 49, 'runtime: {seq: {align: 8}}')],
    "windows_buckets": [("W0402", 8, 77, 'more than 16')],
    "windows_gate": [("W0104", 8, 69, "'gru' is not one of fixed, lstm")],
    "windows_keep": [("W0402", 8, 49, 'memory: {keep: 8}')],
    "windows_memory": [("W0403", 7, 16, 'memory: {of: hidden, keep: 8}')],
}  # fmt: skip


def problems_of(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Problem, ...]:
    monkeypatch.chdir(BAD)
    with pytest.raises(SpecError) as found:
        api.check(f"{name}.yaml")
    return found.value.problems


def at(problem: Problem) -> tuple[str, int, int]:
    """File, line and column."""
    assert problem.place is not None
    return problem.place.file, problem.place.line, problem.place.col


def test_the_corpus_is_complete_and_large_enough():
    assert {path.stem for path in BAD.glob("*.yaml")} == set(CORPUS)
    assert len(CORPUS) >= 40


@pytest.mark.parametrize("name", CORPUS)
def test_every_error_has_its_place_and_a_way_out(name: str, monkeypatch: pytest.MonkeyPatch):
    problems = problems_of(name, monkeypatch)

    assert [(p.code, *at(p)[1:]) for p in problems] == [expected[:3] for expected in CORPUS[name]]
    for problem, (*_, words) in zip(problems, CORPUS[name], strict=True):
        assert words in f"{problem.message}; {problem.hint}"
        assert problem.code in CODES
        assert at(problem)[0] == ("bases/base.yaml" if name == "extends_problem" else f"{name}.yaml")


def test_every_code_is_shown_by_the_corpus_or_told_why_not():
    shown = {code for problems in CORPUS.values() for code, *_ in problems}

    # W0403 and W0404 stand for what only a whole graph shows.
    assert set(CODES) - shown <= {"W0404"}


def test_printed_with_source_line_and_caret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(BAD)
    with pytest.raises(SpecError) as found:
        api.check("unknown_key_in_block.yaml")

    assert render(found.value).splitlines() == [
        "unknown_key_in_block.yaml:5:49: error[W0103]: unknown key 'kv_head' in blocks.attention; "
        "did you mean 'kv_heads'?",
        "    5 |   attention: {kind: attention, pattern: causal, kv_head: 2}",
        "      |                                                 ^^^^^^^",
        "1 error",
    ]


@pytest.mark.parametrize(
    ("line", "col", "width", "shown", "caret_at", "carets"),
    [
        ("a: b", 4, 1, "a: b", 3, 1),
        ("名前: b", 5, 1, "名前: b", 6, 1),
        ("a: \x1b[31mred", 4, 3, "a: \\x1b[31mred", 3, 6),
        ("\ta: b", 5, 1, " a: b", 4, 1),
        ("a: " + "x" * 300, 200, 2, "x" * 100, 50, 2),
    ],
)
def test_carets_stand_under_the_value_whatever_the_line_holds(
    line: str, col: int, width: int, shown: str, caret_at: int, carets: int
):
    error = SpecError([Problem("W0101", "m", place=Place("f", 7, col, width, line))])
    _, source, caret, _ = render(error).splitlines()

    assert source == f"    7 | {shown}"
    assert caret == "      | " + " " * caret_at + "^" * carets


def test_nothing_in_a_spec_reaches_the_terminal_unescaped():
    evil = "\x1b]0;owned\x07\u202e\r\nspoof"
    error = SpecError([Problem("W0101", f"bad {evil}", hint=evil, place=Place(f"d/{evil}", 1, 1, 1, evil))])

    assert all(character.isprintable() or character == "\n" for character in render(error))
    assert len(render(error).splitlines()) == 4


def test_problems_of_a_formula_point_into_the_text_as_typed(tmp_path: Path):
    base = (BAD / "pattern_unknown.yaml").read_text()
    for typed, col in (('"causal and windw(8)"', 53), ("'causal and windw(8)'", 53)):
        path = tmp_path / "s.yaml"
        path.write_text(base.replace("causal and windw(8)", typed))
        with pytest.raises(SpecError) as found:
            api.check(path)
        assert at(found.value.problems[0])[2] == col


def test_errors_of_a_model_built_in_python_name_the_value():
    model = weft.Model(
        name="m",
        dims={"batch": 1, "seq": 8, "width": 8, "heads": 2, "head": "width // zero", "inner": 8, "vocab": 9},
        blocks={"a": weft.Attention(pattern="causal and nope")},
        stack=[{"layer": ["a", "b"]}],
    )
    with pytest.raises(SpecError, match="unknown dim 'zero'"):
        api.check(model)
    with pytest.raises(SpecError) as found:
        api.check(model, sets=["head=4"])
    assert [p.path for p in found.value.problems] == [("blocks", "a", "pattern"), ("stack", 0, "layer", 1)]
