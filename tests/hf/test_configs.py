"""Configs: what cannot be said is told at once, each with its place; published ones have the parameters they should."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hf.record import RECORDED
from weft import api, cli
from weft.errors import SpecError
from weft.frontends.hf.config.options import COMMON, IGNORED
from weft.frontends.hf.families import FAMILIES, REFUSED
from weft.frontends.hf.imported import import_config, import_values
from weft.frontends.load import load_text
from weft.frontends.warned import warnings
from weft.planning import open_spec, program

BAD = Path(__file__).parent / "bad"
CORPUS = {
    "architecture": [("W0104", 3, 20, "known: LlamaForCausalLM")],
    "code": [("W0104", 3, 20, "known: LlamaForCausalLM")],
    "family_refused": [("W0104", 2, 17, "a norm without weights")],
    "family_unknown": [("W0104", 2, 17, "did you mean 'llama'?")],
    "heads_do_not_divide": [
        ("W0402", 3, 18, "hidden_size is 100, no multiple of num_attention_heads"),
        ("W0402", 4, 26, "num_attention_heads is 12, no multiple of num_key_value_heads"),
    ],
    "key_twice": [("W0007", 4, 3, "remove one of them")],
    "latent_router": [
        ("W0104", 3, 19, "only the router of DeepSeek-V3"),
        ("W0104", 4, 18, "only the router of DeepSeek-V3"),
        ("W0104", 5, 26, "save the weights unquantised"),
        ("W0105", 6, 19, "kv_lora_rank: expected a whole number"),
    ],
    "layers_numbers": [("W0105", 3, 22, "a list of numbers of layers"), ("W0106", 4, 26, "0 is no size")],
    "many": [
        ("W0105", 3, 13, "n_embd: expected a whole number, found '768'"),
        ("W0106", 4, 14, "n_layer: 0 is no size"),
        ("W0104", 5, 26, "did you mean 'gelu_new'?"),
        ("W0104", 6, 38, "scale_attn_by_inverse_layer_idx: true is supported only as false"),
        ("W0106", 7, 18, "resid_pdrop: expected a number from 0 to below 1"),
        ("W0103", 8, 3, "take it out if it does not change what the model computes"),
    ],
    "name_code": [("W0104", 2, 17, "weft imports gpt2, gpt_neox, llama")],
    "no_model_type": [("W0102", 1, 1, "missing option 'model_type'")],
    "not_a_map": [("W0105", 1, 1, "a map of options to values")],
    "not_json": [("W0001", 4, 1, "a bracket or brace is not closed")],
    "quantised": [("W0104", 3, 26, "save the weights unquantised")],
    "relative_positions": [
        ("W0104", 3, 30, "relative positions are not in the spec language"),
        ("W0104", 4, 17, "is_decoder: true is supported only as false"),
    ],
    "rotary_unknown": [("W0104", 3, 22, "'longrope'")],
    "router": [
        ("W0104", 3, 27, "output_router_logits: true is supported only as false"),
        ("W0104", 4, 26, "router_jitter_noise: 0.1 is supported only as 0.0"),
    ],
    "size_too_large": [("W0106", 3, 17, "3000000000 is no size"), ("W0106", 4, 25, "-1e-05 must be over 0")],
    "unknown_option": [("W0103", 3, 3, "did you mean 'hidden_size'?"), ("W0103", 4, 3, "take it out")],
}


def test_the_corpus_is_complete():
    assert {path.stem for path in BAD.glob("*.json")} == set(CORPUS)


@pytest.mark.parametrize("name", CORPUS)
def test_everything_wrong_is_told_at_once_with_its_place(name):
    with pytest.raises(SpecError) as found:
        import_config(BAD / f"{name}.json")
    problems = found.value.problems

    assert [(p.code, p.place.line, p.place.col) for p in problems] == [expected[:3] for expected in CORPUS[name]]
    for problem, (*_, words) in zip(problems, CORPUS[name], strict=True):
        assert words in f"{problem.message}; {problem.hint}"
        assert problem.hint or problem.code in ("W0105", "W0106"), "those say what was expected"


def test_the_command_line(tmp_path, capsys):
    """Codes 0, 2 and 3; the spec it writes is one that `check` takes; nothing is overwritten."""
    config, out = tmp_path / "config.json", tmp_path / "spec.yaml"
    config.write_text(json.dumps(RECORDED["mixtral"]["config"]))

    assert cli.run(["import", "hf", str(config), "-o", str(out)]) == 0
    assert cli.run(["check", str(out)]) == 0
    assert cli.run(["check", str(out), "--small"]) == 0
    assert cli.run(["import", "hf", str(tmp_path), "-o", str(out)]) == 2
    assert cli.run(["import", "hf", str(tmp_path / "none.json")]) == 2
    assert cli.run(["import", "onnx", str(config)]) == 2
    capsys.readouterr()
    assert cli.run(["import", "hf", str(BAD / "many.json"), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["ok"], len(found["problems"])) == ("weft.import.hf/1", False, 6)
    assert cli.run(["import", "hf", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == out.read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_table_names_the_tensors_that_transformers_saves(family):
    """By name and shape, as recorded from transformers (`python -m tests.hf.record`); and the spec is one to check."""
    imported = import_values(RECORDED[family]["config"])
    tensors = api.tensors_of(imported)
    saved = {name: tuple(shape) for name, shape in RECORDED[family]["tensors"].items()}
    beginnings, endings = imported.architecture.unneeded, imported.family.unneeded
    unneeded = [n for n in saved if n.startswith(beginnings) or n.endswith(endings)]

    assert {t.name: t.shape for t in tensors.values()} == {n: s for n, s in saved.items() if n not in unneeded}
    loaded = load_text(imported.text)
    assert program(loaded, False).parameter_count() == RECORDED[family]["parameters"] - sum(
        math.prod(saved[n]) for n in unneeded
    )
    assert load_text(imported.text, small=True).model == open_spec(imported.spec, small=True).model
    assert loaded.model.to_yaml()


PUBLISHED = {
    "gpt2": ({"n_embd": 1024, "n_layer": 24, "n_head": 16}, 354_823_168),
    "llama": (
        {
            "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
            "rope_theta": 500000.0, "rope_scaling": None, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        },
        8_030_261_248,
    ),
    "mistral": ({"rope_theta": 10000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 32768}, 7_241_732_096),
    "qwen2": (
        {
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "rope_theta": 1e6, "max_window_layers": 28,
        },
        7_615_616_512,
    ),
    "qwen3": (
        {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "rope_theta": 1e6,
            "max_window_layers": 36, "sliding_window": None,
        },
        8_190_735_360,
    ),
    "qwen2_moe": ({"max_window_layers": 21, "sliding_window": 32768, "rope_theta": 1e6}, 14_315_784_192),
    "qwen3_moe": (
        {
            "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
            "head_dim": 128, "norm_topk_prob": True, "max_position_embeddings": 40960, "rope_theta": 1e6,
            "max_window_layers": 48, "sliding_window": None, "num_experts": 128,
        },
        30_532_122_624,
    ),
    "olmo2": ({"vocab_size": 100352, "max_position_embeddings": 4096, "rope_theta": 5e5}, 7_298_617_344),
    "gemma": ({"hidden_activation": None, "hidden_act": "gelu", "rope_theta": 1e4}, 8_537_680_896),
    "gemma2": ({"cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh"}, 2_614_341_888),
    "gemma3_text": (
        {
            "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
            "num_key_value_heads": 1, "max_position_embeddings": 32768, "sliding_window": 512,
            "rope_local_base_freq": 10000, "rope_scaling": None,
        },
        999_885_952,
    ),
    "gpt_neox": ({"rotary_pct": 0.25, "rotary_emb_base": 10000, "attention_probs_dropout_prob": 0}, 20_554_567_680),
    "phi": (
        {
            "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "partial_rotary_factor": 0.4,
            "resid_pdrop": 0.1,
        },
        2_779_683_840,
    ),
    "phi3": ({"sliding_window": 2047, "original_max_position_embeddings": 4096}, 3_821_079_552),
    "deepseek_v3": (
        {
            "max_position_embeddings": 163840, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
            "moe_layer_freq": 1, "num_nextn_predict_layers": 1, "ep_size": 1, "rope_theta": 10000, "rope_scaling": {
                "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096, "type": "yarn",
            },
        },
        671_026_419_200,
    ),
    "gpt_oss": (
        {
            "num_hidden_layers": 24, "num_local_experts": 32, "experts_per_token": 4, "rope_theta": 150000,
            "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                "rope_type": "yarn", "truncate": False,
            },
            "layer_types": ["sliding_attention", "full_attention"] * 12, "initial_context_length": 4096,
            "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        },
        20_914_757_184,
    ),
    "mixtral": ({"rope_theta": 1e6, "max_position_embeddings": 32768}, 46_702_792_704),
    "bert": ({"architectures": ["BertForPreTraining"]}, 110_106_428),
    "roberta": ({"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}, 124_697_433),
    "longformer": (
        {
            "vocab_size": 50265, "max_position_embeddings": 4098, "type_vocab_size": 1, "attention_window": [512] * 12,
            "attention_mode": "longformer", "ignore_attention_mask": False,
        },
        148_711_257,
    ),
    "big_bird": ({}, 127_520_694),
    "switch_transformers": (
        {
            "num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 6, "encoder_sparse_step": 2,
            "decoder_sparse_step": 2, "d_ff": 3072, "n_positions": 512, "router_type": "tokens_masked",
        },
        619_339_008,
    ),
    "t5": ({"n_positions": 512, "output_past": True}, 60_506_624),
}  # fmt: skip
"""What the published configs say beside the defaults of transformers, and the parameters they give."""


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_configs_have_the_published_parameters(family):
    config, count = PUBLISHED[family]
    imported = import_values({"model_type": family} | config)
    loaded = load_text(imported.text)

    assert program(loaded, False).parameter_count() == count
    assert {p.code for p in warnings(loaded.model, loaded.dims)} <= {"W0503"}, "an encoder sees later positions"
    program(load_text(imported.text, small=True), False)


def test_dropouts_are_in_the_spec():
    imported = import_values({"model_type": "gpt2", "attn_pdrop": 0.2, "embd_pdrop": 0.3, "resid_pdrop": 0.0})
    assert imported.notes == ()
    assert imported.spec["blocks"]["attention"]["dropout"] == 0.2
    assert imported.spec["embed"]["dropout"] == 0.3
    assert "dropout" not in imported.spec["sublayer"]


def test_the_authors_own_code_is_a_note():
    imported = import_values(
        {"model_type": "phi3", "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
    )

    assert imported.notes == ("auto_map is left out: the model is what transformers' own Phi3ForCausalLM computes",)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama", "num_hidden_layers": 2**31 - 1}, "2147483647 is more than 4,096"),
        ({"model_type": "qwen3", "num_hidden_layers": 2, "layer_types": ["full_attention"]}, "names 1 layers"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"] * 32}, "'linear_attention' is no layer"),
        ({"model_type": "longformer", "attention_window": [4, 4]}, "names 2 layers, and num_hidden_layers is 12"),
        ({"model_type": "longformer", "attention_window": 5}, "5 is odd"),
        ({"model_type": "big_bird", "block_size": 1, "num_random_blocks": 5}, "which a spec lists one by one"),
        ({"model_type": "llama", "head_dim": 7}, "a head of 7 has no last pair"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "kind: ntk"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}, "needs factor, original_max_position"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2, "mscale": 1}}, "mscale of"),
        ({"model_type": "phi", "partial_rotary_factor": 1.5}, "1.5 is over 1"),
    ],
)
def test_what_does_not_hold_together(config, words, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(SpecError) as found:
        api.import_hf(path)
    assert words in str(found.value)


def test_characters_that_json_escapes_in_two_halves(tmp_path):
    """transformers writes a config in ASCII; a backslash that is itself escaped begins no escape."""
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"model_type": "gpt2", "id2label": {"0": "\N{GRINNING FACE}", "1": "\\\\ud83d\\ude00"}})
    )
    imported = import_config(config)

    assert imported.config == json.loads(config.read_text())


def test_both_spellings_of_rotary_positions():
    spelt = [{"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}]
    found = [import_values({"model_type": "llama"} | one).spec["blocks"]["attention"]["rotary"] for one in spelt]

    assert found == [{"base": 500000}] * 2


def test_no_option_is_read_and_ignored():
    for family in FAMILIES.values():
        assert not {*family.options, *COMMON} & family.ignored, family.name
        assert not {*COMMON} & IGNORED
    assert not set(FAMILIES) & set(REFUSED)


def test_an_import_needs_no_torch_nor_safetensors(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(RECORDED["llama"]["config"]))
    code = (
        "import sys, weft; weft.load_hf; weft.save_hf; from weft import api\n"
        f"assert api.import_hf({str(config)!r}).text\n"
        "assert not {'torch', 'safetensors', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
