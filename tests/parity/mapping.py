"""Which weight of an independent implementation is which of ours: one row per parameter of a layer, as data.

A row is (our logical name, their name, how). `{}` is the layer. Ours come out of theirs by `how`, then reshaped to our
dims; the same row carries a gradient over, since every `how` only moves entries.
"""

from collections.abc import Callable, Mapping
from typing import Any

Row = tuple[str, str, str]


def _switch(how: str) -> Callable[[Any], Any]:
    """same | turned: a torch Linear's [out, in] | part i/n: the i-th of n equal runs of the last dim | run i/n: of the
    first dim | every i/n: rows i, i + n, ..., turned | run_turned i/n: a run of rows, turned | dealt i/n/m: of m equal
    runs of rows the i-th of n parts each, turned | swapped i/n: of each matrix of a stack the i-th of n runs of rows,
    turned."""
    name, _, rest = how.partition(" ")
    i, n, m = (*(int(x) for x in rest.split("/")), 1)[:3] if rest else (0, 1, 1)
    return {
        "same": lambda x: x,
        "turned": lambda x: x.T,
        "part": lambda x: x.chunk(n, -1)[i],
        "run": lambda x: x.chunk(n, 0)[i],
        "every": lambda x: x[i::n].T,
        "swapped": lambda x: x.chunk(n, 1)[i].transpose(1, 2),
        "dealt": lambda x: x.unflatten(0, (m, n, -1))[:, i].flatten(0, 1).t(),
        "run_turned": lambda x: x.chunk(n, 0)[i].T,
    }[name]


def carry(table: tuple[Row, ...], program: Any, theirs: Mapping[str, Any], torch: Any) -> dict[str, Any]:
    """Our parameters (or gradients) from theirs, in our logical shapes; every one of ours must have a row."""
    sizes = program.resolve()
    rows = {ours: (other, how) for ours, other, how in table}
    out: dict[str, Any] = {}
    for name, (param, _) in program.logical_names().items():
        layer = next((p for p in name.split(".") if p.isdigit()), "") if param.stack else ""
        pattern = name.replace(f"layers.{layer}.", "layers.{}.", 1) if layer else name
        other, how = rows[pattern]
        shape = [sizes[d] for d in param.dims]
        if "*" in other:  # one tensor an expert, stacked
            value = torch.stack(
                [_switch(how)(theirs[other.format(layer).replace("*", str(e))]) for e in range(shape[0])]
            )
        else:
            value = _switch(how)(theirs[other.format(layer)])
        out[name] = value.reshape(shape)
    return out


def used(table: tuple[Row, ...], layers: int, experts: int = 0) -> set[str]:
    """Every one of their names that the table reads."""
    names = {other.format(i) for _, other, _ in table for i in range(layers)}
    return {n.replace("*", str(e)) for n in names for e in range(max(1, experts))}


def _both(ours: str, theirs: str, how: str = "turned") -> tuple[Row, ...]:
    """A matrix and its bias."""
    bias = {"turned": "same"}.get(how, how)
    return (f"{ours}.weight", f"{theirs}.weight", how), (f"{ours}.bias", f"{theirs}.bias", bias)


def _post_layer(theirs: str, attention: str = "attention") -> tuple[Row, ...]:
    """A BERT-like post-norm layer."""
    return (
        *_both("layers.{}.attention.query", f"{theirs}.{{}}.attention.self.query"),
        *_both("layers.{}.attention.key", f"{theirs}.{{}}.attention.self.key"),
        *_both("layers.{}.attention.value", f"{theirs}.{{}}.attention.self.value"),
        *_both("layers.{}.attention.output", f"{theirs}.{{}}.attention.output.dense"),
        *_both("layers.{}.attention_norm", f"{theirs}.{{}}.attention.output.LayerNorm", "same"),
        *_both("layers.{}.feedforward.up", f"{theirs}.{{}}.intermediate.dense"),
        *_both("layers.{}.feedforward.down", f"{theirs}.{{}}.output.dense"),
        *_both("layers.{}.feedforward_norm", f"{theirs}.{{}}.output.LayerNorm", "same"),
    )


GPT2: tuple[Row, ...] = (
    ("embed.tokens", "transformer.wte.weight", "same"),
    ("embed.positions.0", "transformer.wpe.weight", "same"),
    *_both("layers.{}.attention_norm", "transformer.h.{}.ln_1", "same"),
    *_both("layers.{}.attention.query", "transformer.h.{}.attn.c_attn", "part 0/3"),
    *_both("layers.{}.attention.key", "transformer.h.{}.attn.c_attn", "part 1/3"),
    *_both("layers.{}.attention.value", "transformer.h.{}.attn.c_attn", "part 2/3"),
    *_both("layers.{}.attention.output", "transformer.h.{}.attn.c_proj", "same"),
    *_both("layers.{}.feedforward_norm", "transformer.h.{}.ln_2", "same"),
    *_both("layers.{}.feedforward.up", "transformer.h.{}.mlp.c_fc", "same"),
    *_both("layers.{}.feedforward.down", "transformer.h.{}.mlp.c_proj", "same"),
    *_both("norm", "transformer.ln_f", "same"),
)

BERT: tuple[Row, ...] = (
    ("embed.tokens", "bert.embeddings.word_embeddings.weight", "same"),
    ("embed.positions.0", "bert.embeddings.position_embeddings.weight", "same"),
    ("embed.types", "bert.embeddings.token_type_embeddings.weight", "same"),
    *_both("embed.norm", "bert.embeddings.LayerNorm", "same"),
    *_post_layer("bert.encoder.layer"),
    *_both("head.transform", "cls.predictions.transform.dense"),
    *_both("head.transform.norm", "cls.predictions.transform.LayerNorm", "same"),
    ("head.bias", "cls.predictions.bias", "same"),
    *_both("classify.pool", "bert.pooler.dense"),
    *_both("classify.classes", "cls.seq_relationship"),
)

BIGBIRD: tuple[Row, ...] = tuple(row for row in BERT if not row[0].startswith("classify."))

LONGFORMER: tuple[Row, ...] = (
    ("embed.tokens", "longformer.embeddings.word_embeddings.weight", "same"),
    ("embed.positions.0", "longformer.embeddings.position_embeddings.weight", "same"),
    ("embed.positions.1", "longformer.embeddings.token_type_embeddings.weight", "same"),
    *_both("embed.norm", "longformer.embeddings.LayerNorm", "same"),
    *_post_layer("longformer.encoder.layer"),
    *_both("layers.{}.attention.query_global", "longformer.encoder.layer.{}.attention.self.query_global"),
    *_both("layers.{}.attention.key_global", "longformer.encoder.layer.{}.attention.self.key_global"),
    *_both("layers.{}.attention.value_global", "longformer.encoder.layer.{}.attention.self.value_global"),
    *_both("head.transform", "lm_head.dense"),
    *_both("head.transform.norm", "lm_head.layer_norm", "same"),
    ("head.bias", "lm_head.bias", "same"),
)

MISTRAL: tuple[Row, ...] = (
    ("embed.tokens", "model.embed_tokens.weight", "same"),
    ("layers.{}.attention_norm.weight", "model.layers.{}.input_layernorm.weight", "same"),
    ("layers.{}.attention.query.weight", "model.layers.{}.self_attn.q_proj.weight", "turned"),
    ("layers.{}.attention.key.weight", "model.layers.{}.self_attn.k_proj.weight", "turned"),
    ("layers.{}.attention.value.weight", "model.layers.{}.self_attn.v_proj.weight", "turned"),
    ("layers.{}.attention.output.weight", "model.layers.{}.self_attn.o_proj.weight", "turned"),
    ("layers.{}.feedforward_norm.weight", "model.layers.{}.post_attention_layernorm.weight", "same"),
    ("layers.{}.feedforward.gate.weight", "model.layers.{}.mlp.gate_proj.weight", "turned"),
    ("layers.{}.feedforward.up.weight", "model.layers.{}.mlp.up_proj.weight", "turned"),
    ("layers.{}.feedforward.down.weight", "model.layers.{}.mlp.down_proj.weight", "turned"),
    ("norm.weight", "model.norm.weight", "same"),
    ("head.weight", "lm_head.weight", "turned"),
)

SWITCH: tuple[Row, ...] = (
    ("embed.tokens", "embedding", "same"),
    ("layers.{}.moe.router.weight", "mlp.router.classifier.weight", "turned"),
    ("layers.{}.moe.up.weight", "mlp.experts.expert_*.wi.weight", "turned"),
    ("layers.{}.moe.down.weight", "mlp.experts.expert_*.wo.weight", "turned"),
    ("head.weight", "head", "same"),
)

_SRU_ENDS: tuple[Row, ...] = (
    ("embed.tokens", "embedding_layer.weight", "same"),
    ("head.weight", "output_layer.weight", "turned"),
    ("head.bias", "output_layer.bias", "same"),
)


def _sru(cell: str, up: str) -> tuple[Row, ...]:
    """A layer without its attention; its last projection, called `up`, has a channel's three inputs side by side."""
    own, theirs = f"layers.{{}}.{cell}", "rnn.rnn_lst.{}"
    return (
        (f"{own}.down.weight", f"{theirs}.transform_module.linear1.weight", "turned"),
        *_both(f"{own}.norm", f"{theirs}.transform_module.layer_norm", "same"),
        *((f"{own}.{n}.weight", f"{theirs}.transform_module.{up}.weight", f"every {i}/3")
          for i, n in enumerate(("u", "forget", "reset"))),
        (f"{own}.forget_peephole", f"{theirs}.weight_c", "run 0/2"),
        (f"{own}.reset_peephole", f"{theirs}.weight_c", "run 1/2"),
        (f"{own}.forget_bias", f"{theirs}.bias", "run 0/2"),
        (f"{own}.reset_bias", f"{theirs}.bias", "run 1/2"),
    )  # fmt: skip


SRU: tuple[Row, ...] = (
    *_SRU_ENDS,
    *_sru("cell", "linear3"),
    ("layers.{}.cell.alpha", "rnn.rnn_lst.{}.transform_module.alpha", "same"),
    ("layers.{}.cell.key.weight", "rnn.rnn_lst.{}.transform_module.linear2.weight", "run_turned 0/2"),
    ("layers.{}.cell.value.weight", "rnn.rnn_lst.{}.transform_module.linear2.weight", "run_turned 1/2"),
    *_sru("plain", "linear2"),
)
"""Layers with attention are called `cell`, those without `plain`."""


def _bart_attention(ours: str, theirs: str) -> tuple[Row, ...]:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    return tuple(row for own, other in names.items() for row in _both(f"{ours}.{own}", f"{theirs}.{other}"))


def _bart_layer(ours: str, theirs: str, attentions: Mapping[str, str]) -> tuple[Row, ...]:
    rows: tuple[Row, ...] = ()
    for own, other in attentions.items():
        rows += _bart_attention(f"{ours}.{own}", f"{theirs}.{other}")
        rows += _both(f"{ours}.{own}_norm", f"{theirs}.{other}_layer_norm", "same")
    rows += _both(f"{ours}.feedforward.up", f"{theirs}.fc1") + _both(f"{ours}.feedforward.down", f"{theirs}.fc2")
    return rows + _both(f"{ours}.feedforward_norm", f"{theirs}.final_layer_norm", "same")


BART: tuple[Row, ...] = (
    ("source.embed.tokens", "model.shared.weight", "same"),
    *(
        row
        for ours, theirs in (("source", "model.encoder"), ("target", "model.decoder"))
        for row in (
            (f"{ours}.embed.positions.0", f"{theirs}.embed_positions.weight", "same"),
            *_both(f"{ours}.embed.norm", f"{theirs}.layernorm_embedding", "same"),
        )
    ),
    *_bart_layer("source.layers.{}", "model.encoder.layers.{}", {"encode": "self_attn"}),
    *_bart_layer("target.layers.{}", "model.decoder.layers.{}", {"decode": "self_attn", "cross": "encoder_attn"}),
    ("head.bias", "final_logits_bias", "same"),
)
