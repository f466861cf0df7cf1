"""weft compiles a short specification of a sequence model to a plain, readable PyTorch package.

import weft
module = weft.compile("spec.yaml")          # a torch.nn.Module: forward, .step(), .prefill(), .plan
module = weft.load("out/")                  # a package that `weft compile` wrote
module = weft.load_hf("folder/")            # a model that transformers saved, and weft.save_hf(module, "other/")
model = weft.Model(name="tiny", ...)        # the same language in Python; .to_yaml() writes the spec
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from weft.api import compile as compile
    from weft.api import load as load
    from weft.api import load_hf as load_hf
    from weft.api import optimizer as optimizer
    from weft.api import plan as plan
    from weft.api import reference as reference
    from weft.api import save_hf as save_hf
    from weft.errors import WeftError as WeftError
    from weft.frontends.blocks import H3 as H3
    from weft.frontends.blocks import Attention as Attention
    from weft.frontends.blocks import BlockRecurrence as BlockRecurrence
    from weft.frontends.blocks import Convolution as Convolution
    from weft.frontends.blocks import Mlp as MLP
    from weft.frontends.blocks import Moe as MoE
    from weft.frontends.blocks import OpaqueBlock as Opaque
    from weft.frontends.blocks import Recurrence as Recurrence
    from weft.frontends.blocks import StateSpace as StateSpace
    from weft.frontends.blocks import TensorRecurrence as TensorRecurrence
    from weft.frontends.schema import Model as Model

# Loaded on first use: `import weft` costs nothing, and no name here imports torch before it is called.
_HOME = {
    "compile": "weft.api:compile",
    "load": "weft.api:load",
    "load_hf": "weft.api:load_hf",
    "optimizer": "weft.api:optimizer",
    "plan": "weft.api:plan",
    "reference": "weft.api:reference",
    "save_hf": "weft.api:save_hf",
    "Model": "weft.frontends.schema:Model",
    "Attention": "weft.frontends.blocks:Attention",
    "BlockRecurrence": "weft.frontends.blocks:BlockRecurrence",
    "Convolution": "weft.frontends.blocks:Convolution",
    "H3": "weft.frontends.blocks:H3",
    "MLP": "weft.frontends.blocks:Mlp",
    "Recurrence": "weft.frontends.blocks:Recurrence",
    "StateSpace": "weft.frontends.blocks:StateSpace",
    "TensorRecurrence": "weft.frontends.blocks:TensorRecurrence",
    "MoE": "weft.frontends.blocks:Moe",
    "Opaque": "weft.frontends.blocks:OpaqueBlock",
    "WeftError": "weft.errors:WeftError",
}

__all__ = [
    "H3",
    "MLP",
    "Attention",
    "BlockRecurrence",
    "Convolution",
    "MoE",
    "Model",
    "Opaque",
    "Recurrence",
    "StateSpace",
    "TensorRecurrence",
    "WeftError",
    "compile",
    "load",
    "load_hf",
    "optimizer",
    "plan",
    "reference",
    "save_hf",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'weft' has no attribute '{name}'")
    from importlib import import_module  # `import weft` imports nothing else

    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
