"""Where each block's module and each parameter is found in the emitted Model, as source."""

import re
from collections.abc import Mapping

from weft.codegen.torch.sizes import Sizes
from weft.ir.names import identifier, label
from weft.passes.blocks import Block, key
from weft.passes.structure import Borrowed, CallSite, Stack, Structure

_SIMPLE = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = frozenset(
    re.findall(
        r"\w+",
        """
    T_destination add_module apply block_of buffers call_super_init children compile cpu cuda double
    dump_patches encode eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu
    load_state_dict modules mode modes mtia named_buffers named_children named_modules named_parameters
    parameter_groups parameters plan prefill rates register_backward_hook register_buffer register_forward_hook
    register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
    register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter
    register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ reset_parameters set_extra_state
    set_submodule share_memory state state_dict step table to to_empty train training type weight weights xpu
    zero_grad
""",
    )
)
"""Attributes of nn.Module and of the emitted modules: no block is mounted under such a name as an attribute."""


def simple(mount: str) -> bool:
    """Can the mount be an attribute of the model or of groups in it, or of a stack a list that is one?"""
    parts = mount.removesuffix(".{}").split(".")
    return all(_SIMPLE.fullmatch(part) and part not in TAKEN for part in parts)


class Mounts:
    """The places of a model's modules and parameters."""

    def __init__(self, model: Structure, blocks: Mapping[object, Block]) -> None:
        self.model, self.program, self.blocks = model, model.program, blocks
        self.sizes = Sizes.of(model.program)
        self.homes = self._homes()
        self.lists = self._lists()

    @property
    def groups(self) -> list[str]:
        """The modules that hold others alone, a dotted name each, outer ones first; those of the model's own parameters
        are made with these."""
        stems = (site.mount.removesuffix(".{}") for site in self.model.sites if simple(site.mount))
        heads = (stem.split(".")[:n] for stem in stems for n in range(1, stem.count(".") + 1))
        there = {p.name.rsplit(".", n)[0] for p in self.model.root for n in range(1, p.name.count(".") + 1)}
        return [name for name in dict.fromkeys(".".join(parts) for parts in heads) if name not in there]

    def _homes(self) -> dict[int, str]:
        """Attribute names of modules that own no parameters, by the place of their site."""
        tops = {p.name.split(".")[0] for p in self.program.params} | TAKEN
        out: dict[int, str] = {}
        for i, site in enumerate(self.model.sites):
            if not site.mount:
                out[i] = identifier(f"{site.call.name}_block", {*tops, *out.values()})
        return out

    def _lists(self) -> dict[str, bool]:
        """Stack mounts that can be one nn.ModuleList: their rows are 0, 1, 2, .. in order of appearance."""
        rows: dict[str, list[int]] = {}
        for stack in (s for s in self.model.steps if isinstance(s, Stack)):
            n = self.sizes.frozen(stack.loop.dim)
            for i in range(n):
                for site in stack.sites:
                    if site.mount:
                        rows.setdefault(site.mount, []).append(site.start + site.step * i)
        return {m: simple(m) and found == list(range(len(found))) for m, found in rows.items()}

    def place(self, site: CallSite, i: str = "") -> str:
        """The source of a site's module; `i` is the row's variable."""
        if not site.mount:
            return f"self.{self.homes[self._index(site)]}" + (f"[{i}]" if site.rows else "")
        if site.rows is None:
            return f"self.{site.mount}" if simple(site.mount) else f'found(self, "{label(site.mount)}")'
        row = i if site.step == 1 else f"{site.step} * {i}"
        row = row if not site.start else f"{site.start} + {row}" if site.step == 1 else f"{row} + {site.start}"
        if self.lists[site.mount]:
            return f"self.{site.mount.removesuffix('.{}')}[{row}]"
        return f'found(self, "{site.mount}".format({row}))'

    def _index(self, site: CallSite) -> int:
        return next(i for i, s in enumerate(self.model.sites) if s is site)

    def weight(self, p: Borrowed, i: str) -> str:
        """The source of a parameter that the reading block does not own."""
        for site in self.model.sites:
            for own in site.own:
                if own.param.value == p.param.value and site.rows is None:
                    return f'weight({self.place(site)}, "{label(own.name)}")'
        if p.param.stack is None:
            return f'weight(self, "{label(p.name)}")'
        row = f"{p.param.start} + {p.param.step} * {i}"
        label(p.name.replace("{}", "0"))
        return f'weight(self, "{p.name}".format({row}))'

    def covers(self, stack: Stack) -> bool:
        """Is the module list exactly this loop's layers?"""
        site = stack.sites[0]
        if len(stack.sites) > 1 or not site.mount:
            return len(stack.sites) == 1
        others = [s for s in self.model.sites if s.mount == site.mount and s is not site]
        return self.lists[site.mount] and not others

    def title(self, site: CallSite) -> str:
        """The class of a site's block."""
        return self.blocks[key(site)].title
