"""Runners for tests: one that asserts what the gates promise, one whose answers are given."""

from collections import Counter

from weft.autotune.types import Config, Fidelity, Level, Outcome, Runner, Status, config_id


class Spy:
    """Passes everything on to a runner, and fails when a configuration outside `allowed` reaches it."""

    def __init__(self, inner: Runner, allowed: tuple[Config, ...] | None = None):
        self.inner = inner
        self.allowed = None if allowed is None else {config_id(c) for c in allowed}
        self.first: Counter[str] = Counter()
        self.calls = 0

    def time(self, config: Config, fidelity: Fidelity) -> Outcome:
        name = config_id(config)
        assert self.allowed is None or name in self.allowed, f"{config} was refused by a gate and still timed"
        self.calls += 1
        self.first[name] += fidelity.level is Level.LAUNCH
        return self.inner.time(config, fidelity)

    @property
    def repeated(self) -> list[str]:
        return [name for name, n in self.first.items() if n > 1]

    def close(self) -> None:
        self.inner.close()


class Given:
    """Answers from a function of the configuration; raises what the function raises."""

    def __init__(self, answer):
        self.answer = answer

    def time(self, config: Config, fidelity: Fidelity) -> Outcome:
        found = self.answer(config)
        return found if isinstance(found, Outcome) else Outcome(Status.OK, (found,) * fidelity.samples)

    def close(self) -> None:
        pass
