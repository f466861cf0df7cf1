"""A spec drawn from the options, as a map; options seldom taken so far are likelier."""

import copy
import json
import random
from collections import Counter
from typing import Any

from tests.sweep import options as o
from tests.sweep.matrices import multiplied
from tests.sweep.memories import hand_on
from tests.sweep.rows import packed
from tests.sweep.spaces import SHARE, space
from tests.sweep.units import unit

Spec = dict[str, Any]
TENSORS = 0.05
"""Share of specs with a recurrence of tensors; and of those with one that multiplies by matrices."""


def blocks_of(spec: Spec) -> list[Spec]:
    """The blocks written in a spec, in `blocks` and in the stack."""
    written = [s["block"] for s in steps_of(spec) if isinstance(s, dict) and isinstance(s["block"], dict)]
    return [*spec.get("blocks", {}).values(), *written]


def layers_of(spec: Spec) -> list[Any]:
    """The layers of every stage."""
    return [layer for stage in spec["stack"] for layer in (stage.get("cycle") or [stage["layer"]])]


def steps_of(spec: Spec) -> list[Any]:
    """The steps of all layers: names of blocks, and maps."""
    steps = [step for layer in layers_of(spec) for step in layer]
    beside = [step.get("parallel", [step]) if isinstance(step, dict) else [step] for step in steps]
    return [step for steps in beside for step in steps]


def language_heads(spec: Spec) -> list[Spec]:
    """The heads that are language heads; one that was not written is, to be changed."""
    heads = spec.setdefault("head", {})
    return [h for h in (heads if isinstance(heads, list) else [heads]) if h.get("kind", "language") == "language"]


class Draw:
    """One drawing. seen: how often each option was taken before. told: those that this drawing took, `key=value`.
    share: of specs of several streams."""

    def __init__(self, seed: str, seen: Counter[str], share: float = 0.0) -> None:
        self.random, self.seen, self.share = random.Random(seed), seen, share
        self.streams = random.Random(f"{seed}, streams")  # of its own: who adds an option there changes no other spec
        self.parts = random.Random(f"{seed}, parts")  # the same
        self.places = random.Random(f"{seed}, places")
        self.latents = random.Random(f"{seed}, latents")
        self.rows = random.Random(f"{seed}, rows")
        self.tensors = random.Random(f"{seed}, tensors")
        self.weighed = random.Random(f"{seed}, weighed")
        self.matrices = random.Random(f"{seed}, matrices")
        self.memories = random.Random(f"{seed}, memories")
        self.spaces = random.Random(f"{seed}, spaces")
        self.scales = random.Random(f"{seed}, scales")
        self.told: list[str] = []
        self.most = 0

    def one(self, key: str, options: o.Options) -> Any:
        weights = [1 / (1 + self.seen[f"{key}={x}"]) for x in options]
        got = self.random.choices(options, weights)[0]
        self.told.append(f"{key}={got}")
        return copy.deepcopy(got)

    def among(self, key: str, options: o.Options) -> Any:
        """One of them, of an option whose drawing changes no other."""
        got = self.places.choice(options)
        self.told.append(f"{key}={got}")
        return copy.deepcopy(got)

    def some(self, share: float, at: str, keys: dict[str, o.Options]) -> Spec:
        """Each key with probability `share`, its value drawn."""
        return {k: self.one(f"{at}.{k}", values) for k, values in keys.items() if self.random.random() < share}

    def spec(self) -> Spec:
        causal, most = self.random.random() < 0.6, self.one("most", [7, 8, 12])
        self.most = most
        names = ["a", "b", "c"][: self.random.choice([1, 1, 2, 3])]
        sizes = {"width": 8, "heads": 2, "head": "width // heads", "inner": 6, "experts": 4, "vocab": 11}
        blocks = {n: self.block(causal) for n in names}
        s: Spec = {
            "weft": 1,
            "name": "drawn",
            "dims": {"batch": 2, "seq": most, **sizes, "most": most},
            "blocks": blocks,
        }
        s["stack"] = self.stack(causal, blocks)
        s |= self.runtime(most)
        if s.get("runtime", {}).get("seq") and self.random.random() < 0.5:
            s["dims"]["seq"] = 4 + 2 * (most == 12)
        ends = self.ends(causal)
        model = {"norm": o.NORM, "about": ["A drawn spec."], "dtype": o.DTYPE, "small": [{"width": 4}]}
        s |= self.some(0.3, "model", model) | ends
        if self.places.random() < 0.1:
            self.remember(s)
        if self.streams.random() < self.share / 2:
            s["stack"][0]["norm"] = self.one("stage.norm", o.NORM[:2])
        if '"opaque"' in json.dumps(s):
            s.pop("dtype", None)  # a wrapped module has dtypes of its own
        elif self.streams.random() < self.share:
            s = self.two(s)
        hand_on(s, self.memories, self.told)
        s = self.newer(s)
        if s.get("memory", {}).get("of") == "tokens":
            for block in blocks_of(s):
                block.pop("skip_padding", None)  # tokens of memory are no padding
        return packed(s, self.rows, self.told)

    def newer(self, s: Spec) -> Spec:
        """The spec with parts of today's decoders, each with a chance of its own."""
        for block in blocks_of(s):
            if block["kind"] == "attention":
                self.maybe(0.3, block, "attention", "qk_norm", o.QK_NORM)
                self.maybe(0.25, block, "attention", "sinks", [True])
                turns = block.get("relative", {"kind": "none"}).get("kind", "sinusoid") != "sinusoid"
                self.maybe(0.3 if turns else 0.0, block, "attention", "rotary", [*o.ROTARY, *o.NTK])
                self.maybe(0.25, block, "attention", "dropout", o.ATTENTION_DROPOUT)
                if block.get("rotary") in o.NTK:
                    block["head"] = 4
                self.narrow(block)
                unit(block, "memory" in s, self.weighed, self.told)
            if block["kind"] == "moe":
                self.experts(block)
            if block["kind"] in ("mlp", "moe") and block.get("gated"):
                self.maybe(0.4, block, block["kind"], "activation", o.GATED)
        self.maybe(0.2, s.setdefault("sublayer", {}), "sublayer", "output_norm", o.OUTPUT_NORM)
        self.maybe(0.1, s["sublayer"], "sublayer", "norm", o.OFFSET)
        for step in steps_of(s):
            if isinstance(step, dict):
                self.maybe(0.3, step, "step", "output_norm", o.OUTPUT_NORM)
        layers = layers_of(s)
        for layer in layers:
            self.beside(layer, s.get("sublayer", {}).get("residual", "pre"))
        if "memory" not in s and self.tensors.random() < TENSORS:
            layers[0].append({"block": self.tensor()})
        if "memory" not in s and self.matrices.random() < TENSORS:
            layers[-1].append({"block": multiplied(self.matrices, self.told)})
        if "memory" not in s and self.spaces.random() < SHARE:
            layers[-1].append({"block": space(self.spaces, self.told)})
        for head in language_heads(s):
            self.maybe(0.25, head, "head", "softcap", o.SOFTCAP)
            self.maybe(0.2, head, "head", "label_smoothing", o.SMOOTHING)
            self.maybe(0.2, head, "head", "z_loss", o.Z_LOSS)
        self.scaled(s)
        self.convolved(s)
        return {k: v for k, v in s.items() if v != {}}

    def tensor(self) -> Spec:
        """A recurrence of tensors, every key of it likely."""
        found: Spec = {"kind": "tensor_recurrence", **copy.deepcopy(self.tensors.choice(o.TENSORS))}
        found |= {k: copy.deepcopy(self.tensors.choice(v)) for k, v in o.TENSOR.items() if self.tensors.random() < 0.75}
        self.told += [f"tensors={found['update']}", *(f"tensors.{k}={found[k]}" for k in o.TENSOR if k in found)]
        return found

    def narrow(self, block: Spec) -> None:
        """An attention's keys and values of a latent, now and then, and what does not go with it taken away."""
        if "globals" in block or self.latents.random() >= 0.3:
            return
        block["latent"] = latent = copy.deepcopy(self.latents.choice(o.LATENT))
        self.told.append(f"attention.latent={latent}")
        block.pop("qk_norm", None)
        if rotary := block.get("rotary"):
            latent["shared"] = 4 if rotary in o.NTK else 2
            if isinstance(rotary, dict):
                rotary.pop("dims", None)
        if "shared" in latent:
            block["head"] = 4 + latent["shared"] // 4 * 2

    def scaled(self, s: Spec) -> None:
        """Weight norm, and factors on what sub-layers leave, of all or of one, now and then."""
        for block in (b for b in blocks_of(s) if b["kind"] == "mlp" and self.scales.random() < 0.2):
            block["weight_norm"] = copy.deepcopy(self.scales.choice(o.WEIGHT_NORM))
            self.told.append(f"mlp.weight_norm={block['weight_norm']}")
        alone = [step for layer in layers_of(s) for step in layer if isinstance(step, dict) and "block" in step]
        for at, part in (("sublayer", s["sublayer"]), *(("step", step) for step in alone)):
            if self.scales.random() < 0.1:
                part["residual_scale"] = self.scales.choice(o.RESIDUAL_SCALE)
                self.told.append(f"{at}.residual_scale={part['residual_scale']}")

    def convolved(self, s: Spec) -> None:
        """Convolutions in a layer, now and then."""
        if "memory" not in s and self.rows.random() < 0.15:
            block: Spec = {"kind": "convolution", "layers": copy.deepcopy(self.rows.choice(o.CONVOLUTIONS))}
            self.told.append(f"convolution.layers={block['layers']}")
            layer = self.rows.choice(layers_of(s))
            layer.insert(self.rows.randint(0, len(layer)), {"block": block})

    def experts(self, block: Spec) -> None:
        """Routed experts with more that a router may do."""
        for key, options in o.MOE_NEWER.items():
            self.maybe(0.35, block, "moe", key, options)
        if self.parts.random() < 0.35:
            fit = [x for x in o.GROUPS if block.get("top_k", 1) <= 4 // x["groups"] * x["groups_kept"]]
            block |= (got := self.parts.choice(fit))
            self.told.append(f"moe.groups={got}")
        if self.parts.random() < 0.2:
            block.pop("capacity_factor", None)
            block["capacity"] = "none"
            self.told.append("moe.capacity=none")

    def beside(self, layer: list[Any], residual: str) -> None:
        """The layer with its last steps beside each other, now and then, with a norm each or one for both."""
        if self.parts.random() < (0.3 if len(layer) > 1 else 0.1):
            steps = copy.deepcopy(layer[-2:]) if len(layer) > 1 else [layer[0], copy.deepcopy(layer[0])]
            steps = [{"block": x} if isinstance(x, str) else x for x in steps]
            for step in steps:
                if step.pop("residual", "pre") != "pre" or residual != "pre":
                    step["residual"] = "pre"
            layer[-2:] = [{"parallel": steps}]
            self.told.append("parallel=2")
            self.maybe(0.5, layer[-1], "parallel", "norm", [*o.NORM, *o.OFFSET])
            for step in steps if "norm" in layer[-1] else []:
                step.pop("norm", None)

    def maybe(self, share: float, part: Spec, at: str, key: str, options: o.Options) -> None:
        """The key set in a part, with probability `share`."""
        if self.parts.random() < share:
            part[key] = copy.deepcopy(self.parts.choice(options))
            self.told.append(f"{at}.{key}={part[key]}")

    def remember(self, s: Spec) -> None:
        """Give the model a memory, and take from its parts what goes with none."""
        if not any(b["kind"] in ("attention", "recurrence") for b in blocks_of(s)):
            return
        s["memory"] = {"keep": self.among("memory.keep", o.KEEP)}
        s["memory"] |= {"of": "hidden"} if self.places.random() < 0.3 else {}
        s.get("embed", {}).pop("positions", None)
        for block in blocks_of(s):
            if block["kind"] == "recurrence":
                block.clear()
                block |= {"kind": "attention"}
            if block["kind"] == "attention":
                for key in ("plan", "globals", "score"):
                    block.pop(key, None)
                block["pattern"] = self.among("memory.pattern", o.REMEMBERED)
                block |= {"score": self.among("memory.score", o.FAR)} if self.places.random() < 0.3 else {}

    def two(self, s: Spec) -> Spec:
        """The spec as the second of two streams, which reads the first. `seq` is a number like any other there."""
        length = s["dims"]["seq"]
        dims = {**s["dims"], "seq": self.most, "source": self.most, "target": length}
        runtime = {("target" if d == "seq" else d): limit for d, limit in s.get("runtime", {}).items()}
        once = self.one("stream.once", [True, True, False])
        first: Spec = {"length": "source", "once": True} if once else {"length": "source"}
        second: Spec = {"length": "target"}
        embed = s.pop("embed", {})
        if embed and self.streams.random() < 0.7:
            first["embed"], embed = embed, {"like": "source"}
        if self.streams.random() < 0.5:
            embed["tied"] = "source"
        second |= {"embed": embed} if embed else {}
        encode = self.block(False)
        encode = {"kind": "mlp"} if encode["kind"] == "opaque" else encode
        cross = {"kind": "attention", "context": "source"} | self.some(0.3, "cross", o.ATTENTION)
        cross |= {"pattern": self.one("cross.pattern", o.ACROSS)} | self.some(0.3, "cross", {"score": o.SCORE})
        stack: list[Spec] = [{"stream": "source", "repeat": 2, "layer": [{"block": encode}]}]
        stack += [{**stage, "stream": "target"} for stage in s["stack"]]
        layers = stack[1].get("cycle") or [stack[1]["layer"]]
        layers[0].append({"block": cross})
        if "memory" in s:
            s["memory"] |= {"stream": "target"}
        heads = s.get("head", {})
        head = [{**h, "stream": "target"} for h in heads] if isinstance(heads, list) else {**heads, "stream": "target"}
        streams = {"streams": {"source": first, "target": second}}
        return {**s, "dims": dims, **({"runtime": runtime} if runtime else {}), **streams, "stack": stack, "head": head}

    def stack(self, causal: bool, blocks: dict[str, Spec]) -> list[Spec]:
        steps = [self.step(n, b) for n, b in blocks.items()]
        stage: Spec = {"cycle": [[x] for x in steps]} if self.random.random() < 0.25 else {"layer": steps}
        found = [stage | self.some(0.3, "stage", {"repeat": [1, 2, 3], "name": ["part"]})]
        if self.random.random() < 0.15:
            found.append({"layer": [{"block": self.block(causal)}], "name": "last"})
        return found

    def runtime(self, most: int) -> Spec:
        if self.random.random() >= 0.3:
            return {}
        found: Spec = {"batch": {"max": 4}}
        if self.random.random() < 0.6:
            found["seq"] = {"max": most, "align": self.one("align", [1, 2] if most % 2 == 0 else [1])}
        return {"runtime": found}

    def ends(self, causal: bool) -> Spec:
        sub = {"norm": o.NORM, "residual": o.RESIDUAL, "dropout": [0.1]}
        found = {
            "embed": self.some(0.4, "embed", o.EMBED),
            "sublayer": self.some(0.35, "sublayer", sub),
            "head": self.head(causal),
            "init": self.some(0.25, "init", dict.fromkeys(o.ROLES, o.RULE)),
        }
        return {k: v for k, v in found.items() if v}

    def head(self, causal: bool) -> Spec | list[Spec]:
        language = self.some(0.4, "head", o.LANGUAGE)
        kind = "language" if causal else self.one("heads", ["language", "classify", "both"])
        if kind == "language":
            return language
        classify = {"kind": "classify", "classes": 3} | self.some(0.5, "classify", o.CLASSIFY)
        return classify if kind == "classify" else [language, classify]

    def step(self, name: str, block: Spec) -> str | Spec:
        changes = {"mlp": {"gated": True}, "moe": {"normalize": True}, "attention": {"bias": False}}
        keys = {"norm": o.NORM, "residual": o.RESIDUAL, "dropout": [0.1]}
        if block["kind"] in changes:
            keys["set"] = [changes[block["kind"]]]
        own = self.some(0.25, "step", keys)
        return {"block": name} | own if own else name

    def block(self, causal: bool) -> Spec:
        kind = self.one("kind", ["attention", "attention", "recurrence", "moe", "mlp", "opaque"])
        return getattr(self, kind)(causal)

    def mlp(self, causal: bool) -> Spec:
        return {"kind": "mlp"} | self.some(0.5, "mlp", o.MLP)

    def opaque(self, causal: bool) -> Spec:
        signature = {"signature": "batch seq width -> batch seq width"}
        return {"kind": "opaque"} | (signature if causal else {})

    def attention(self, causal: bool) -> Spec:
        backward = causal or self.random.random() < 0.3
        scores = [*o.SCORE, *o.BACKWARD_SCORE] if backward else o.SCORE
        found: Spec = {"kind": "attention"} | self.some(0.35, "attention", o.ATTENTION)
        if self.random.random() < 0.5:
            found["score"] = self.one("attention.score", scores)
        if not causal and not backward and self.random.random() < 0.25:
            return found | {"plan": self.plan()}
        found["pattern"] = self.one("attention.pattern", o.CAUSAL if backward else o.BOTH_WAYS)
        whole = found.get("score") not in o.BACKWARD_SCORE  # rows of global tokens see later keys
        if not causal and "kv_heads" not in found and self.random.random() < 0.35 and whole:
            found["globals"] = {"tokens": self.one("globals.tokens", [1, 2, 3])}
        if not {"globals", "rotary"} & {*found} and self.places.random() < 0.25:
            found["relative"] = self.among("attention.relative", o.RELATIVE)
        return found

    def plan(self) -> Spec:
        """A block plan, drawn by the compiler or given outright for the rows of the largest length."""
        block = self.one("plan.block", [2, 3])
        found = {"block": block} | self.some(0.5, "plan", {"window": [1, 3]})
        if self.random.random() < 0.3:
            rows = -(-self.most // block)
            return found | {"table": [[[(i + 2) % rows, i] for i in range(max(0, rows - 2))]]}
        return found | {"seed": 1} | self.some(0.5, "plan", {"random": [0, 1, 3]})

    def recurrence(self, causal: bool) -> Spec:
        at = self.one("cell", list(range(len(o.CELL))))
        parts = dict(zip(("inputs", "state", "parameters", "let", "update", "output"), copy.deepcopy(o.CELL[at])))
        rules = {n: self.one("cell.rule", o.RULE[:6]) for n in parts["parameters"]}
        found: Spec = {"kind": "recurrence"} | {k: v for k, v in parts.items() if v or k not in ("parameters", "let")}
        found |= ({"parameters": rules} if rules else {}) | self.some(0.3, "cell", {"init": o.CELL_INIT})
        if "mask" in found["output"]:
            found["dropout"] = 0.25
        if found["inputs"] and self.random.random() < 0.4:
            patterns = ["none", *o.CAUSAL[:8]] + ([] if causal else o.BOTH_WAYS[:4])
            found["projection"] = {"rank": 4} | self.some(0.5, "projection", {**o.PROJECTION, "pattern": patterns})
        return found

    def moe(self, causal: bool) -> Spec:
        found: Spec = {"kind": "moe", "experts": 4} | self.some(0.5, "moe", o.MOE)
        if self.random.random() < 0.5:
            return found | {"capacity": self.one("moe.capacity", o.CAPACITY)}
        factors = [0.5, 1.0, 1.25, 4 / found.get("top_k", 1), 9.0]
        return found | {"capacity_factor": self.one("moe.factor", factors)}
