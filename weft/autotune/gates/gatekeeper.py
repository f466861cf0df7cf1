"""The gates before the stopwatch, cheapest first, each refusal with a reason; none needs a GPU.

    with Gatekeeper(problem, compilers) as keeper:
        pool = keeper.pool(upto="shared")       what is left of the whole space, with features and a funnel
        verdict = keeper.judge(config)          one configuration through all gates up to the full compilation
        keeper.admitted(config)                 whether it may be launched: only what `judge` let pass

A gate refuses what cannot run or is wrong, never what is merely unpromising: spills are a feature, not a verdict. What
the compilers' budget, or the share of it that a gate has, leaves no time for was not asked: it is no verdict either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from weft.autotune.budget import Budget, Late
from weft.autotune.gates.candidate import STEPS, Candidate, GateVerdict
from weft.autotune.gates.features import Facts, estimate, facts
from weft.autotune.gates.funnel import Funnel
from weft.autotune.space import hazards
from weft.autotune.space.workload import TuningProblem
from weft.autotune.types import Config, Pool, Row, Source, Status, config_id
from weft.autotune.workers.compile_pool import Built, CompilePool
from weft.autotune.workers.launches import KernelLaunch
from weft.autotune.workers.process import Worker
from weft.targets import LIMITS

HOST = "weft.autotune.workers.host"
_BATCH, _AT_ONCE = 64, 16
_SHARES = {"wrapper": 0.25, "shared": 0.5}
"""Of the seconds, until when these gates are asked; of what is compiled they see `_MORE` times as much."""
_MORE = 16
_LAUNCH_SECONDS, _INTERPRET_SECONDS = 60.0, 120.0
_TWIN = "launches the same as another configuration"
Watch = Callable[[str, int, int], object]
"""Is told the gate that is asked, about how many it was, and of how many."""


_Asked = tuple[Candidate, Budget]


class Gatekeeper:
    """The gates of one problem.

    compilers: a pool on the problem's folder, shared with other problems of it. interpret: whether `judge` and `pool`
    may run kernels in the interpreter when asked `upto` it. triton: of the hazard table; default the pool's. unasked:
    of the gates of `pool`, how many each had no time for.
    """

    def __init__(
        self, problem: TuningProblem, compilers: CompilePool, *, triton: str = "", nice: int = 10,
        watch: Watch = lambda gate, done, total: None,
    ) -> None:  # fmt: skip
        self.problem, self.compilers, self.funnel = problem, compilers, Funnel()
        self.budget, self.watch, self.unasked = compilers.budget, watch, dict[str, int]()
        self.triton = triton or compilers.triton()
        self._host = Worker(HOST, nice=nice)
        self._interpreting = Worker(HOST, env={"TRITON_INTERPRET": "1"}, nice=nice)
        self._known: dict[str, Candidate] = {}
        self._owners: dict[tuple[Any, ...], str] = {}
        self._meanings: dict[tuple[Any, ...], tuple[str, float, str]] = {}
        self._admitted: set[str] = set()
        self._asked, self._of = 0, 0

    def __enter__(self) -> Gatekeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; the compilers are their owner's."""
        self._host.kill()
        self._interpreting.kill()

    # The two questions

    def pool(self, upto: str = "shared", most: int = 0, seconds: float = math.inf) -> Pool:
        """What the whole space comes to after the gates up to `upto`.

        most: let only so many through the gates from "compile" on, the most promising by the cost model, and some times
        as many through those before. seconds: ask no longer, the first gates sooner; but the first one of each gate,
        the default, has the whole budget until it is compiled. The others stay in the pool and are judged when their
        turn comes."""
        mine = self.budget.part(seconds)
        left = self._arithmetic()
        for gate in STEPS[: STEPS.index(upto) + 1]:
            limit = mine.part(seconds * (1.0 if gate == upto else _SHARES.get(gate, 1.0)) - mine.used)
            asked = self._ranked(gate, left, most, seconds < math.inf)
            size = _BATCH if gate == "wrapper" else _AT_ONCE
            self._asked, self._of = 0, len(asked)
            whole = asked[0] if asked and gate != "interpreter" else None
            for first in range(0, len(asked), size):
                batch = asked[first : first + size]
                if not self._through(gate, batch, [self.budget if c is whole else limit for c in batch]):
                    break
            self._of = 0
            if late := sum(c.refused is None and not c.past(gate) for c in asked):
                self.unasked[gate] = late
            left = [c for c in left if c.refused is None]
        return Pool(tuple(c.config for c in left), self._columns(left), self.funnel.rejected, self.funnel.seconds)

    def _ranked(self, gate: str, left: Sequence[Candidate], most: int, cut: bool) -> list[Candidate]:
        """Who is asked at a gate, the default first, then the most promising; before anything is known, as they are
        listed, or where only some will be asked in an order by chance, so that a part is like the whole."""
        place, default = STEPS.index(gate), self.problem.default
        ready = [c for c in left if not place or c.seen == STEPS[place - 1] or c.recalled]
        if gate not in _SHARES:
            ready = sorted(ready, key=lambda c: (c.config != default, estimate(self._facts(c))))
            return ready[:most] if most else ready
        if cut or 0 < _MORE * most < len(ready):
            ready = sorted(ready, key=lambda c: config_id(c.config))
        return sorted(ready, key=lambda c: c.config != default)[: _MORE * most or None]

    def recall(self, rows: Iterable[Row]) -> int:
        """Believe what `--prepare` found out with this very Triton: refusals are not asked again, survivors need not be
        compiled to be let through. Arithmetic and hazards are asked all the same. How many rows were of use."""
        count, limit = 0, LIMITS[self.problem.target]["shared_limit"]
        for row in rows:
            if row.src is not Source.PREPARE:
                continue
            candidate = self._candidate(row.config)
            if candidate.refused is not None or candidate.seen or (row.shared or 0) > limit:
                continue
            count += 1
            candidate.recalled = {n: float(v) for n, v in row.features if isinstance(v, int | float)}
            candidate.recalled.setdefault("launches", 1.0)
            candidate.cubins = (row.cubin,) if row.cubin else ()
            if row.status is not Status.OK:
                candidate.refuse("compile", "refused when prepared", row.reason, row.status)
                self.funnel["compile"].entered += 1
                self.funnel["compile"].refuse("refused when prepared")
        return count

    def judge(self, config: Config, upto: str = "compile") -> GateVerdict:
        """One configuration through the gates up to `upto`; what was found out before is not asked again. Late where
        the budget leaves no time for it."""
        candidate = self._candidate(config)
        for gate in STEPS[: STEPS.index(upto) + 1]:
            if candidate.refused is None and not self._through(gate, [candidate]):
                raise Late
        verdict = self._verdict(candidate)
        if verdict.ok and STEPS.index(upto) >= STEPS.index("compile"):
            self._admitted.add(config_id(config))
        return verdict

    def verdicts(self) -> list[GateVerdict]:
        """Of every configuration that came past arithmetic, in the order they were first seen."""
        return [self._verdict(c) for c in self._known.values()]

    def admitted(self, config: Config) -> bool:
        """Whether `judge` has let it pass down to its machine code."""
        return config_id(config) in self._admitted

    def canonical(self, config: Config) -> Config:
        """The configuration of the pool that launches the same as this one, such as a winner from elsewhere."""
        candidate = self._candidate(config)
        self._through("wrapper", [candidate])
        owner = self._owners.get(_identity(candidate.launches), "") if candidate.launches else ""
        return dict(self._known[owner].config) if owner in self._known else config

    def ahead(self, configs: Iterable[Config]) -> None:
        """Begin to compile these; `judge` will not have to wait for them."""
        todo = [c for c in map(self._candidate, configs) if c.refused is None and c.seen in ("", *STEPS[:2])]
        self._through("wrapper", todo)
        for candidate in todo:
            for launch in candidate.launches if candidate.refused is None else ():
                self.compilers.compile(launch, self.problem.target)

    # One gate after another

    def _arithmetic(self) -> list[Candidate]:
        stage, began = self.funnel["arithmetic"], time.process_time()
        found = self.problem.space.enumerate(self.problem.target, self.problem.given)
        stage.entered += found.size
        for reason, n in found.rejected.items():
            stage.refuse(reason, n)
        stage.cpu_s += time.process_time() - began
        listed = sorted(found.configs, key=lambda c: c != self.problem.default)  # of twins the first one stays
        candidates = [self._add(config) for config in listed]
        self._hazard(candidates)
        return [c for c in candidates if c.refused is None]

    def _candidate(self, config: Config) -> Candidate:
        """The candidate of any configuration, the space's or not."""
        found = self._known.get(config_id(config))
        if found is not None:
            return found
        candidate, stage = self._add(config), self.funnel["arithmetic"]
        stage.entered += 1
        reason = self.problem.space.refusal(self.problem.target, self.problem.given, config)
        if reason and config != self.problem.default:  # what it runs with today may be anything
            stage.refuse(reason)
            candidate.refuse("arithmetic", reason)
        else:
            self._hazard([candidate])
        return candidate

    def _add(self, config: Config) -> Candidate:
        return self._known.setdefault(config_id(config), Candidate(dict(config)))

    def _hazard(self, candidates: Sequence[Candidate]) -> None:
        stage, began, p = self.funnel["hazard"], time.process_time(), self.problem
        stage.entered += len(candidates)
        configs = [c.config for c in candidates]
        for candidate, found in zip(candidates, hazards.refusals(p.space, p.given, p.target, self.triton, configs)):
            if found:
                stage.refuse(found)
                candidate.refuse("hazard", found)
        stage.cpu_s += time.process_time() - began

    def _through(self, gate: str, candidates: Sequence[Candidate], limits: Sequence[Budget] = ()) -> bool:
        """Ask one gate about those who have not been asked yet, each within its limit, else within the budget. Whether
        there was time for all."""
        pairs = zip(candidates, limits or [self.budget] * len(candidates), strict=True)
        todo = [(c, limit) for c, limit in pairs if c.refused is None and not c.past(gate)]
        stage, ask = self.funnel[gate], getattr(self, f"_{gate}")
        late = {id(c) for c in ask([(c, limit) for c, limit in todo if gate == "wrapper" or not c.recalled])}
        for candidate in (c for c, _ in todo if id(c) not in late):
            stage.entered += 1
            candidate.seen = gate
            if candidate.refused is not None:
                stage.refuse(candidate.refused.reason)
        return not late

    def _tell(self, gate: str, count: int = 1) -> None:
        """So many more were asked, where it is `pool` that asks."""
        if self._of:
            self._asked += count
            self.watch(gate, min(self._asked, self._of), self._of)

    # Each gives those it had no time for.

    def _wrapper(self, todo: Sequence[_Asked]) -> list[Candidate]:
        """Record the launches; refuse what the wrapper cannot launch, and twins."""
        late: list[Candidate] = []
        p = self.problem
        job = {"op": "launches", "workload": p.workload.data(), "target": p.target, "sizes": dict(p.sizes)}
        job |= {"dtype": p.dtype, "kernels": list(p.space.kernels)}
        for first in range(0, len(todo), _BATCH):
            batch = [c for c, _ in todo[first : first + _BATCH]]
            limit = max((limit for _, limit in todo[first : first + _BATCH]), key=Budget.left)
            try:
                answer = self._host.ask(job | {"configs": [c.config for c in batch]}, _LAUNCH_SECONDS, limit)
            except Late:
                late += batch
                continue
            self._tell("wrapper", len(batch))
            if answer.data is None or answer.raised:
                detail = answer.reason or f"{answer.raised}: {(answer.data or {}).get('message', '')}"
                for candidate in batch:
                    candidate.refuse("wrapper", "the wrapper cannot be run", detail)
                continue
            self.funnel["wrapper"].cpu_s += answer.data["cpu_s"]
            for candidate, found in zip(batch, answer.data["found"], strict=True):
                self._launched(candidate, found)
        return late

    def _launched(self, candidate: Candidate, found: Mapping[str, Any]) -> None:
        if "raised" in found:
            candidate.refuse("wrapper", "the wrapper refuses it", f"{found['raised']}: {found['message']}")
            return
        candidate.launches = tuple(KernelLaunch.parse(data) for data in found["launches"])
        if not candidate.launches:
            candidate.refuse("wrapper", "nothing is launched")
            return
        mine = config_id(candidate.config)
        owner = self._owners.setdefault(_identity(candidate.launches), mine)
        if owner != mine:
            candidate.refuse("wrapper", _TWIN, f"configuration {owner}")

    def _shared(self, todo: Sequence[_Asked]) -> list[Candidate]:
        target = self.problem.target
        futures = [[self.compilers.shared(f, target, limit) for f in c.launches] for c, limit in todo]
        return self._built("shared", todo, futures)

    def _compile(self, todo: Sequence[_Asked]) -> list[Candidate]:
        target = self.problem.target
        futures = [[self.compilers.compile(f, target, limit) for f in c.launches] for c, limit in todo]
        return self._built("compile", todo, futures)

    def _built(self, gate: str, todo: Sequence[_Asked], futures: Sequence[Sequence[Any]]) -> list[Candidate]:
        stage, counted, late = self.funnel[gate], set[str](), list[Candidate]()
        for (candidate, _), waiting in zip(todo, futures, strict=True):
            try:
                builts = tuple(future.result() for future in waiting)
            except Late:
                late.append(candidate)
                continue
            self._tell(gate)
            for launch, built in zip(candidate.launches, builts):
                if launch.key() not in counted:
                    counted.add(launch.key())
                    stage.cpu_s += built.cpu_s
            candidate.builts = builts if gate == "compile" or not candidate.builts else candidate.builts
            self._verify_built(gate, candidate, builts)
        return late

    def _verify_built(self, gate: str, candidate: Candidate, builts: Sequence[Built]) -> None:
        """Refuse what did not compile, cannot be launched, or lost the specialisation that it asked for."""
        limit = LIMITS[self.problem.target]["shared_limit"]
        for built in builts:
            if built.status is not Status.OK:
                return candidate.refuse(gate, built.reason, built.detail, built.status)
            if built.shared is not None and built.shared > limit:
                return candidate.refuse(gate, "shared memory", f"{built.shared} bytes of {limit}")
        if gate == "compile":
            if self._facts(candidate).get("occupancy", 1) < 1:
                return candidate.refuse(gate, "no block fits a multiprocessor", f"{builts[0].regs} registers a thread")
            if candidate.config.get("WARP_SPECIALIZE") and not any(b.specialised for b in builts):
                return candidate.refuse(gate, "warps are not specialised", "no setmaxnreg in the PTX")
        return None

    def _interpreter(self, todo: Sequence[_Asked]) -> list[Candidate]:
        """Results against the reference; configurations that mean the same are run once."""
        p, late = self.problem, list[Candidate]()
        job = {"op": "interpret", "workload": p.workload.data(), "target": p.target, "checks": list(p.checks)}
        for candidate, limit in todo:
            meaning = tuple((f.key(options=False), f.grid) for f in candidate.launches)
            if meaning not in self._meanings:
                try:
                    answer = self._interpreting.ask(job | {"config": candidate.config}, _INTERPRET_SECONDS, limit)
                except Late:
                    late.append(candidate)
                    continue
                data = answer.data or {}
                self.funnel["interpreter"].cpu_s += float(data.get("cpu_s", answer.seconds))
                if answer.data is None:  # too slow to be judged here says nothing of the GPU
                    self._meanings[meaning] = ("unknown", 0.0, answer.reason)
                elif answer.raised:
                    self._meanings[meaning] = ("wrong", 1.0, f"{answer.raised}: {data.get('message', '')}"[:300])
                else:
                    self._meanings[meaning] = (data["status"], float(data["error"]), data["reason"])
            self._tell("interpreter")
            status, error, reason = self._meanings[meaning]
            if status == "unknown":
                continue
            candidate.error = error
            if status != "ok":
                candidate.refuse("interpreter", "wrong result in the interpreter", reason, Status(status))
        return late

    # What is known

    def _facts(self, candidate: Candidate) -> Facts:
        if candidate.recalled:
            return candidate.recalled
        return facts(candidate.launches, candidate.builts, self.problem.target)

    def _verdict(self, candidate: Candidate) -> GateVerdict:
        known = self._facts(candidate) if candidate.launches or candidate.recalled else {}
        compiled = [b for b in candidate.builts if b.regs is not None]
        seconds = sum(b.seconds for b in compiled) if compiled else None
        cubins = candidate.cubins or tuple(b.cubin for b in compiled if b.cubin)
        found = candidate.refused or GateVerdict(candidate.config)
        return replace(found, facts=known, error=candidate.error, cubins=cubins, compile_s=seconds)

    def _columns(self, candidates: Sequence[Candidate]) -> dict[str, list[float]]:
        """The facts as columns; only those known of every candidate."""
        every = [self._facts(c) for c in candidates]
        names = [n for n in (every[0] if every else {}) if all(n in f for f in every)]
        return {n: [f[n] for f in every] for n in names}


def _identity(launches: Sequence[KernelLaunch]) -> tuple[Any, ...]:
    return tuple((f.key(), f.grid) for f in launches)
