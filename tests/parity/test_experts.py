"""Routed experts as today's models have them, against Hugging Face's: fp64, random weights, every gradient."""

from importlib import import_module
from typing import Any

import pytest
import torch

from tests.parity.mapping import Row
from tests.parity.oracle import agree, built, in_double, integers, randomise
from tests.parity.test_transformers import entropy
from weft.frontends.schema import Model

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {"hidden_size": 16, "moe_intermediate_size": 12, "hidden_act": "silu"}
MOE: dict[str, Any] = {
    "kind": "moe", "capacity": "none", "activation": "silu", "gated": True, "inner": 12, "aux_loss": 0.0,
}  # fmt: skip
ENDS: tuple[Row, ...] = (("embed.tokens", "embedding", "same"), ("head.weight", "head", "same"))
ROUTED: tuple[Row, ...] = (
    ("layers.{}.moe.router.weight", "mlp.gate.weight", "turned"),
    ("layers.{}.moe.gate.weight", "mlp.experts.gate_up_proj", "swapped 0/2"),
    ("layers.{}.moe.up.weight", "mlp.experts.gate_up_proj", "swapped 1/2"),
    ("layers.{}.moe.down.weight", "mlp.experts.down_proj", "swapped 0/1"),
)


def shared(name: str) -> tuple[Row, ...]:
    return tuple(
        (f"layers.{{}}.moe.shared.{n}.weight", f"mlp.{name}.{n}_proj.weight", "turned") for n in ("gate", "up", "down")
    )


def program(experts: int, **block: Any) -> Any:
    """Of a model of one such layer and nothing else."""
    return built(Model.model_validate({
        "name": "experts",
        "dims": {"batch": 2, "seq": 24, "width": 16, "experts": experts, "vocab": 40},
        "sublayer": {"norm": "none", "residual": "none"},
        "stack": [{"layer": [{"block": MOE | block}]}],
    }))  # fmt: skip


class Layer:
    """A family's sparse layer between a table of tokens and a head; `bias` is a buffer of its router."""

    def __init__(self, family: str, kind: str, config: Any, bias: bool = False) -> None:
        self.file = import_module(f"transformers.models.{family}.modeling_{family}")
        with in_double(self.file):
            self.oracle = torch.nn.Module()
            self.oracle.mlp = getattr(self.file, kind)(config).double().train()
            self.oracle.embedding = torch.nn.Parameter(torch.zeros(40, 16))
            self.oracle.head = torch.nn.Parameter(torch.zeros(16, 40))
            self.theirs = randomise(self.oracle, scale=0.5)
            if bias:
                draw = torch.Generator().manual_seed(9)
                given = torch.randn(config.num_local_experts, generator=draw, dtype=torch.float64).requires_grad_()
                self.oracle.mlp.gate.e_score_correction_bias = self.theirs["bias"] = given
            self.inputs = {"tokens": integers(1, 40, 2, 24), "targets": integers(2, 40, 2, 24)}
            self.x = self.oracle.embedding[self.inputs["tokens"]]
            self.logits = self.oracle.mlp(self.x) @ self.oracle.head

    def agrees(self, ours: Any, table: tuple[Row, ...], more: Any = 0.0, **want: torch.Tensor) -> None:
        loss = entropy(self.logits, self.inputs["targets"]) + more
        agree(ours, (*ENDS, *table), self.theirs, self.inputs, {"loss": loss, "logits": self.logits} | want)
        assert set(self.theirs) == {other for _, other, _ in (*ENDS, *table)}


@pytest.mark.parametrize("gated", [True, False])
def test_qwen2_shared_experts(gated: bool) -> None:
    """`gated`: as the family has them; else that gate is left out of both."""
    config = transformers.Qwen2MoeConfig(
        **SIZES, num_experts=6, num_experts_per_tok=2, shared_expert_intermediate_size=20, norm_topk_prob=gated
    )
    layer = Layer("qwen2_moe", "Qwen2MoeSparseMoeBlock", config)
    table = (
        *ROUTED,
        *shared("shared_expert"),
        ("layers.{}.moe.shared.weight", "mlp.shared_expert_gate.weight", "same"),
    )
    if not gated:
        mlp = layer.oracle.mlp
        with in_double(layer.file):
            _, gates, chosen = mlp.gate(layer.x.flatten(0, 1))
        routed = mlp.experts(layer.x.flatten(0, 1), chosen, gates).view_as(layer.x)
        layer.logits = (routed + mlp.shared_expert(layer.x)) @ layer.oracle.head
        table = table[:-1]
        del layer.theirs["mlp.shared_expert_gate.weight"]
    ours = program(6, top_k=2, normalize=gated, shared={"inner": 20, "gate": gated})
    layer.agrees(ours, table)


@pytest.mark.parametrize(("groups", "kept", "top_k"), [(4, 2, 3), (1, 1, 2), (3, 2, 1)])
def test_deepseek_v3_routing(groups: int, kept: int, top_k: int) -> None:
    """Sigmoid scores, a bias that only chooses, the best groups alone, scaled gates, shared experts."""
    config = transformers.DeepseekV3Config(
        **SIZES, n_routed_experts=12, num_experts_per_tok=top_k, n_group=groups, topk_group=kept, n_shared_experts=2,
        norm_topk_prob=True, routed_scaling_factor=2.5,
    )  # fmt: skip
    layer = Layer("deepseek_v3", "DeepseekV3MoE", config, bias=True)
    chosen = {"router": "sigmoid", "choice_bias": True, "normalize": True, "route_scale": 2.5, "top_k": top_k}
    ours = program(12, **chosen, groups=groups, groups_kept=kept, shared={"inner": 24})
    layer.agrees(ours, (*ROUTED, *shared("shared_experts"), ("layers.{}.moe.router.bias", "bias", "same")))


@pytest.mark.parametrize("padded", [False, True])
def test_mixtral_losses_over_all_tokens(padded: bool) -> None:
    """The balance of all tokens together, of those that are no padding, and the router's z-loss."""
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=12, num_local_experts=5, num_experts_per_tok=2, router_jitter_noise=0.0
    )
    layer = Layer("mixtral", "MixtralSparseMoeBlock", config)
    valid = torch.arange(24)[None] < torch.tensor([24, 9])[:, None]
    router = layer.x.flatten(0, 1) @ layer.oracle.mlp.gate.weight.T
    with in_double(layer.file):
        balance = layer.file.load_balancing_loss_func((router,), 5, 2, valid if padded else None)
    rows = router[valid.flatten()] if padded else router
    z = rows.logsumexp(-1).square().mean()
    losses = {"aux": "pooled", "aux_loss": 0.3, "z_loss": 0.1, "skip_padding": padded}
    layer.inputs |= {"valid": valid} if padded else {}
    ours = program(5, top_k=2, normalize=True, **losses)
    layer.agrees(ours, ROUTED, 0.3 * balance + 0.1 * z, aux_loss=balance + z)


def test_balance_of_each_sequence_without_padding() -> None:
    """Against the same function of each sequence's tokens by themselves."""
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=12, num_local_experts=5, num_experts_per_tok=2
    )
    layer = Layer("mixtral", "MixtralSparseMoeBlock", config)
    valid = torch.arange(24)[None] < torch.tensor([20, 9])[:, None]
    with in_double(layer.file):
        each = [
            layer.file.load_balancing_loss_func((x[v] @ layer.oracle.mlp.gate.weight.T,), 5, 2)
            for x, v in zip(layer.x, valid)
        ]
    balance = torch.stack(each).mean()
    layer.inputs |= {"valid": valid}
    ours = program(5, top_k=2, normalize=True, aux_loss=0.3, skip_padding=True)
    layer.agrees(ours, ROUTED, 0.3 * balance, aux_loss=balance)
