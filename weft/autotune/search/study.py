"""The Optuna study of a search: in memory, or in a storage of Optuna's that several processes share; and its export
for optuna-dashboard.

    optuna-dashboard sqlite:///study.db        after  export({"weft": study}, "study.db")
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from weft.autotune.types import STUDIES, Outcome, Status, Value
from weft.errors import UsageError

if TYPE_CHECKING:
    from optuna.study import Study

    from weft.autotune.search.sampler import FromPool

NAME = "weft"
_SQLITE = STUDIES[:3]


def new_study(sampler: Any, storage: Any = None, name: str | None = None) -> Study:
    """A study to be minimised, in microseconds. storage: None for memory, or what Optuna takes: a URL, a storage. One
    of that name that is there already is gone on with."""
    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(quiet, optuna.logging.WARNING))  # creating one is no news
    try:
        return optuna.create_study(storage=storage, study_name=name, sampler=sampler, load_if_exists=True)
    finally:
        optuna.logging.set_verbosity(quiet)


def fixed(study: Study, number: int) -> dict[str, Any]:
    """The parameters a trial was enqueued with; empty for one that was not."""
    return study.get_trials(deepcopy=False)[number].system_attrs.get("fixed_params", {})


def refusal(fixed: Mapping[str, Any], sampler: FromPool) -> str:
    """Why what is enqueued cannot be tried; "" when it may be."""
    for name, value in fixed.items():
        if name not in sampler.space:
            return f"{name} is no knob"
        if not any(type(v) is type(value) and v == value for v in sampler.space[name].choices):  # pyright: ignore
            return f"{name} has no value {value!r}"
    return ""


def tell(study: Study, number: int, outcome: Outcome) -> None:
    """Finish a trial: with its time in microseconds, or failed."""
    timed = outcome.status in (Status.OK, Status.SLOW)
    us = outcome.us if timed else None
    if us is None or not math.isfinite(us):
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, us)


def skip(study: Study, number: int) -> None:
    """Finish a trial that nothing is learnt from."""
    study.tell(number, state=TrialState.PRUNED)


def add(study: Study, sampler: FromPool, params: Mapping[str, Value], outcome: Outcome) -> int:
    """A trial that another process ran; gives its number."""
    us = outcome.us if outcome.status in (Status.OK, Status.SLOW) else None
    state = TrialState.FAIL if us is None else TrialState.COMPLETE
    study.add_trial(
        create_trial(
            state=state, value=us, params=dict(params), distributions=dict(sampler.space), user_attrs={"origin": "peer"}
        )
    )
    return study.get_trials(deepcopy=False)[-1].number


def export(studies: Mapping[str, Study], path: str | os.PathLike[str]) -> str:
    """Write all trials of studies, by the names they get, to a file that optuna-dashboard opens; gives Optuna's URL of
    it, or the path of a journal. Of no study at all an empty one is made.

    .db, .sqlite: SQLite. .log, .journal, .jsonl: Optuna's journal. A file that is there is not overwritten.
    """
    file = Path(path)
    if file.exists():
        raise UsageError(f"{file} exists; a study is written to a new file")
    if file.suffix in _SQLITE:
        where: Any = f"sqlite:///{file}"
    elif file.suffix in STUDIES:
        where = JournalStorage(JournalFileBackend(str(file)))
    else:
        raise UsageError(f"a study is written to a file that ends in {', '.join(STUDIES)}, not {file.name}")
    if not studies:
        new_study(None, where, NAME)
    for name, study in studies.items():
        made = new_study(None, where, name)
        made.add_trials([t for t in study.get_trials(deepcopy=False) if t.state.is_finished()])
    return where if isinstance(where, str) else str(file)
