"""In every test here a spy stands before the bench worker: what a static gate refuses must not get there."""

import pytest

from weft.autotune.gates.runner import BenchRunner
from weft.autotune.space.hazards import refusals


@pytest.fixture(autouse=True)
def spy(monkeypatch):
    """The configurations that were sent to bench workers behind gates, each judged once more by arithmetic alone."""
    sent, plain = [], BenchRunner._ask

    def watched(self, job, config, seconds):
        if self.keeper is not None:
            sent.append((self.keeper, dict(config)))
        return plain(self, job, config, seconds)

    monkeypatch.setattr(BenchRunner, "_ask", watched)
    yield sent
    for keeper, config in sent:
        p = keeper.problem
        assert keeper.admitted(config)
        assert p.space.refusal(p.target, p.given, config) == "" or config == p.default
        assert refusals(p.space, p.given, p.target, keeper.triton, [config]) == [""] or config == p.default
