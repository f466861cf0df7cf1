"""The shipped specs, at small dims, against Hugging Face's implementations: fp64, random weights, every gradient."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity import mapping
from tests.parity.oracle import agree, built, in_double, integers, randomise, shipped, spec_of
from weft.frontends.schema import Model

transformers = pytest.importorskip("transformers")


def entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def masked(seed: int, below: int, *shape: int) -> torch.Tensor:
    """Targets of which every third does not count."""
    targets = integers(seed, below, *shape)
    targets[..., ::3] = -100
    return targets


def words(seed: int, below: int, *shape: int) -> torch.Tensor:
    """Tokens without the padding tokens 0 and 1, whose embeddings the oracles keep from learning."""
    return integers(seed, below - 2, *shape) + 2


@pytest.mark.parametrize(("name", "vocab", "layers", "heads"), [("gpt2_345m", 96, 2, 2), ("megatron_8b", 128, 3, 4)])
def test_gpt2(name: str, vocab: int, layers: int, heads: int) -> None:
    config = transformers.GPT2Config(
        vocab_size=vocab, n_positions=32, n_embd=32, n_layer=layers, n_head=heads, attn_implementation="eager"
    )
    oracle = transformers.GPT2LMHeadModel(config).double().eval()
    theirs = randomise(oracle)
    tokens, targets = integers(1, vocab, 2, 32), integers(2, vocab, 2, 32)
    logits = oracle(tokens).logits
    want = {"loss": entropy(logits, targets), "logits": logits}
    agree(shipped(name), mapping.GPT2, theirs, {"tokens": tokens, "targets": targets}, want)
    assert set(theirs) == mapping.used(mapping.GPT2, layers)


def test_bert() -> None:
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    oracle = transformers.BertForPreTraining(config).double().eval()
    theirs = randomise(oracle)
    inputs = {
        "tokens": words(1, 96, 3, 32), "types": integers(2, 2, 3, 32), "targets": masked(3, 96, 3, 32),
        "labels": integers(4, 2, 3),
    }  # fmt: skip
    out = oracle(inputs["tokens"], token_type_ids=inputs["types"])
    loss = entropy(out.prediction_logits, inputs["targets"]) + entropy(out.seq_relationship_logits, inputs["labels"])
    want = {"loss": loss, "logits": out.prediction_logits, "classes": out.seq_relationship_logits}
    agree(shipped("bert_base"), mapping.BERT, theirs, inputs, want)
    assert set(theirs) == mapping.used(mapping.BERT, 2)


def test_bart() -> None:
    """Two lengths, padding in the source, a table of tokens that three places share."""
    config = transformers.BartConfig(
        vocab_size=96, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128, max_position_embeddings=32,
        attn_implementation="eager",
    )  # fmt: skip
    oracle = transformers.BartForConditionalGeneration(config).double().eval()
    theirs = randomise(oracle)
    oracle.final_logits_bias = (
        torch.randn(1, 96, generator=torch.Generator().manual_seed(5)).double()
    ).requires_grad_()
    theirs["final_logits_bias"] = oracle.final_logits_bias
    inputs = {
        "source_tokens": words(1, 96, 3, 32), "target_tokens": words(2, 96, 3, 24), "targets": masked(3, 96, 3, 24),
        "source_valid": torch.arange(32)[None] < torch.tensor([32, 20, 5])[:, None],
    }  # fmt: skip
    logits = oracle(inputs["source_tokens"], inputs["source_valid"].long(), inputs["target_tokens"]).logits
    want = {"loss": entropy(logits, inputs["targets"]), "logits": logits}
    agree(shipped("bart_base"), mapping.BART, theirs, inputs, want)
    assert set(theirs) == mapping.used(mapping.BART, 2)


def test_bert_with_padding() -> None:
    """Keys that `valid` denies, against the attention mask."""
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    oracle = transformers.BertForMaskedLM(config).double().eval()
    theirs = randomise(oracle)
    spec = spec_of("bert_base")
    spec["dims"] |= spec["small"]
    spec["blocks"]["attention"]["pattern"] = "valid"
    program = built(Model.model_validate(spec | {"head": spec["head"][0]}))
    valid = torch.arange(32)[None] < torch.tensor([32, 20, 5])[:, None]
    inputs = {
        "tokens": words(1, 96, 3, 32), "types": integers(2, 2, 3, 32), "targets": masked(3, 96, 3, 32), "valid": valid,
    }  # fmt: skip
    logits = oracle(inputs["tokens"], token_type_ids=inputs["types"], attention_mask=valid.long()).logits
    want = {"loss": entropy(logits, inputs["targets"]), "logits": logits}
    agree(program, mapping.BIGBIRD, theirs, inputs, want)


def _bigbird(seq: int, block: int, layers: int) -> Any:
    """In training mode, since in evaluation every random block is block 0; nothing is dropped."""
    config = transformers.BigBirdConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=seq, block_size=block, num_random_blocks=3, attention_type="block_sparse",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, use_bias=True, rescale_embeddings=False,
    )  # fmt: skip
    return transformers.BigBirdForMaskedLM(config).double().train()


def _planned(oracle: Any, seq: int, block: int) -> list[list[list[list[int]]]]:
    """The random blocks that the oracle draws: [layer][head][middle row][3], as its forward does it."""
    out: list[list[list[list[int]]]] = []
    for layer in oracle.bert.encoder.layer:
        attention = layer.attention.self
        np.random.seed(attention.seed)
        if seq == 1024:
            rows = seq // block - 2
            plan = [
                attention._bigbird_block_rand_mask(
                    attention.max_seqlen, attention.max_seqlen, block, block, 3, last_idx=1024
                )[:rows]
                for _ in range(2)
            ]
        else:
            length, blocks = attention._get_rand_attn_plan(seq, block, 3)
            plan = attention._bigbird_block_rand_mask_with_head(
                from_seq_length=seq, to_seq_length=seq, from_block_size=block, to_block_size=block, num_heads=2,
                plan_from_length=length, plan_num_rand_blocks=blocks,
            )  # fmt: skip
        out.append([np.asarray(head).tolist() for head in plan])
    return out


@pytest.mark.parametrize(("seq", "block", "layers"), [(64, 4, 2), (1024, 64, 1)])
def test_bigbird(seq: int, block: int, layers: int) -> None:
    """A plan a layer, given as a table. The paper's own plan at 1024 lists some blocks twice: they count twice."""
    oracle = _bigbird(seq, block, layers)
    plans = _planned(oracle, seq, block)
    theirs = randomise(oracle)
    spec = spec_of("bigbird_base")
    plan = {"block": block, "window": 3, "random": 3}
    spec["stack"] = [
        {"cycle": [[{"block": "attention", "set": {"plan": plan | {"table": p}}}, "feedforward"] for p in plans]}
    ]
    spec["dims"] |= spec["small"] | {"seq": seq, "block": block, "layers": layers}
    program = built(Model.model_validate(spec))
    repeats = [op.pattern.multiset for op in attends(program)]
    assert any(repeats) == (seq == 1024)
    inputs = {"tokens": words(1, 96, 1, seq), "types": integers(2, 2, 1, seq), "targets": masked(3, 96, 1, seq)}
    logits = oracle(inputs["tokens"], token_type_ids=inputs["types"]).logits
    want = {"loss": entropy(logits, inputs["targets"]), "logits": logits}
    agree(program, mapping.BIGBIRD, theirs, inputs, want)
    unused = {"bert.pooler.weight", "bert.pooler.bias"}
    assert set(theirs) - unused == mapping.used(mapping.BIGBIRD, layers)


def attends(program: Any) -> list[Any]:
    """Every attention of a program's layers."""
    loops = [n.op.body for n in program.graph.nodes if type(n.op).__name__ == "Loop"]
    bodies = [n.op.body for loop in loops for n in loop.nodes]
    return [n.op for body in bodies for n in body.nodes if type(n.op).__name__ == "Attend"]


def test_longformer() -> None:
    """A window for each layer, two global tokens. The oracle has no dilation."""
    # transformers imports a model's file when it is asked for, in seconds
    from transformers.models.longformer import modeling_longformer

    config = transformers.LongformerConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=50, attention_window=[4, 4, 8, 8], type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1,
    )  # fmt: skip
    with in_double(modeling_longformer):
        oracle = transformers.LongformerForMaskedLM(config).double().eval()
        theirs = randomise(oracle)
        tokens, targets = words(1, 96, 2, 48), masked(2, 96, 2, 48)
        everywhere = torch.zeros(2, 48, dtype=torch.long)
        everywhere[:, :2] = 1
        logits = oracle(tokens, attention_mask=torch.ones_like(tokens), global_attention_mask=everywhere).logits
    want = {"loss": entropy(logits, targets), "logits": logits}
    program = shipped("longformer_base", "dilation=1")
    agree(program, mapping.LONGFORMER, theirs, {"tokens": tokens, "targets": targets}, want)
    assert set(theirs) == mapping.used(mapping.LONGFORMER, 4)


def test_mistral() -> None:
    # transformers imports a model's file when it is asked for, in seconds
    from transformers.models.mistral import modeling_mistral

    config = transformers.MistralConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=56, max_position_embeddings=32, sliding_window=8, rms_norm_eps=1e-5,
        attn_implementation="eager",
    )  # fmt: skip
    with in_double(modeling_mistral):
        oracle = transformers.MistralForCausalLM(config).double().eval()
        theirs = randomise(oracle)
        tokens, targets = integers(1, 96, 2, 32), integers(2, 96, 2, 32)
        logits = oracle(tokens, use_cache=False).logits
    want = {"loss": entropy(logits, targets), "logits": logits}
    agree(shipped("mistral_7b"), mapping.MISTRAL, theirs, {"tokens": tokens, "targets": targets}, want)
    assert set(theirs) == mapping.used(mapping.MISTRAL, 2)


@pytest.mark.parametrize("capacity", [3, 24])
def test_switch(capacity: int) -> None:
    """The sparse layer alone, with tokens dropped (3) and with none; its capacity counts tokens of one sequence."""
    # transformers imports a model's file when it is asked for, in seconds
    from transformers.models.switch_transformers import modeling_switch_transformers as switch

    config = transformers.SwitchTransformersConfig(
        d_model=16, d_ff=24, num_experts=4, expert_capacity=capacity, dropout_rate=0.0
    )
    weight = 0.25
    block = {"kind": "moe", "capacity": capacity, "activation": "relu", "aux_loss": weight}
    model = Model.model_validate({
        "name": "switch_layer",
        "dims": {"batch": 2, "seq": 24, "width": 16, "inner": 24, "experts": 4, "vocab": 40},
        "sublayer": {"norm": "none", "residual": "none"},
        "stack": [{"layer": [{"block": block}]}],
    })  # fmt: skip
    with in_double(switch):
        oracle = torch.nn.Module()
        oracle.mlp = switch.SwitchTransformersSparseMLP(config).double().eval()
        oracle.embedding = torch.nn.Parameter(torch.zeros(40, 16))
        oracle.head = torch.nn.Parameter(torch.zeros(16, 40))
        theirs = randomise(oracle)
        tokens, targets = integers(1, 40, 2, 24), integers(2, 40, 2, 24)
        x = oracle.embedding[tokens]
        logits = oracle.mlp(x) @ oracle.head
        dropped = int((oracle.mlp.router(x)[0].sum(-1) == 0).sum())
        chance = torch.softmax(oracle.mlp.router.classifier(x), -1)
        balance = switch.load_balancing_loss_func(chance, chance.argmax(-1))
    want = {"loss": entropy(logits, targets) + weight * balance, "logits": logits, "aux_loss": balance}
    agree(built(model), mapping.SWITCH, theirs, {"tokens": tokens, "targets": targets}, want)
    assert (dropped > 0) == (capacity == 3)
    assert set(theirs) == mapping.used(mapping.SWITCH, 1, 4)
