"""The device that results are of, from what a bench worker or torch says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.cache.key import Device, Soft
from weft.codegen.plan import machine

INTERPRETER = "interpreter"
"""Stands for the GPU, and for the policy of timing, where kernels run in Triton's interpreter on a CPU: such times are
under keys of their own, which answer no lookup for a GPU."""


def device_of(facts: Mapping[str, Any], target: str) -> tuple[Device, Soft]:
    """Of what `timing.device_facts` gives, with the version of "torch"; without an arch it is the interpreter."""
    soft = Soft(torch=str(facts.get("torch", "")), memory=int(facts.get("memory") or 0))
    if not facts["arch"]:
        return Device(target, INTERPRETER), soft
    return Device(facts["arch"], facts["gpu"], facts["sms"], facts["shared"]), soft


def here(target: str) -> tuple[Device, Soft]:
    """This machine's, where its GPU is of that architecture; else only the architecture is known. Imports torch where
    there is a GPU."""
    if machine.own_target() != target:
        return Device(target), Soft()
    # torch is imported only where there is a GPU
    import torch

    from weft.autotune.workers.timing import device_facts

    return device_of({**device_facts("cuda"), "torch": torch.__version__}, target)
