"""What Optuna does in a sweep: it proposes the trials of a generation, keeps the study, and weighs the settings.

Each generation has a sampler of its own, seeded by (seed, generation), which is told the trials before in order of
their number. So the proposals are a function of those results, whenever and by whom they were computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from twinrun.base.files import replacing
from twinrun.core.keyed import keyed_bits
from twinrun.sweep.plan import Plan, Range, Scalar

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_RESAMPLES = 10
_TREES = 16
_FEWEST = 4  # trials whose importance is worth a look


@dataclass(frozen=True)
class Result:
    """A trial as Optuna is told of it: its settings, its metric by epoch, and whether it went to its end."""

    values: Mapping[str, Scalar]
    state: Literal["finished", "stopped", "failed"]
    scores: Mapping[int, float] = field(default_factory=dict)

    @property
    def last(self) -> float | None:
        """The metric at the last epoch at which it was judged."""
        return self.scores[max(self.scores)] if self.scores else None


@dataclass(frozen=True)
class Importance:
    """The share of a setting in the variance of the metric: the mean over resamples, and 5% and 95% of them."""

    name: str
    mean: float
    low: float
    high: float


def propose(plan: Plan, past: Sequence[Result], generation: int, count: int) -> list[dict[str, Scalar]]:
    """The settings of the `count` trials of a generation, given the results before it."""
    import optuna

    seed = int(keyed_bits(plan.seed, generation)[0] >> np.uint64(33))
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = _study(plan, past, sampler=sampler)
    dimensions = plan.dimensions()
    trials = [study.ask(_distributions(plan)) for _ in range(count)]
    return [{name: _value(dimensions[name], trial.params[name]) for name in dimensions} for trial in trials]


def write_study(plan: Plan, results: Sequence[Result], path: Path) -> None:
    """Publish the study as a journal that Optuna's own tools can open (JournalStorage)."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    with replacing(path) as temp:
        lock = temp.with_name(f"{temp.name}.lock")
        backend = JournalFileBackend(str(temp), lock_obj=JournalFileOpenLock(str(lock)))
        _study(plan, results, storage=JournalStorage(backend), name=path.parent.name)
        lock.unlink(missing_ok=True)


def importances(plan: Plan, values: Sequence[Mapping[str, Scalar]], scores: Sequence[float]) -> list[Importance]:
    """fANOVA's importance of each setting (Hutter et al., 2014), over resamples of the trials; most important first.

    Empty where there are fewer than four trials or all have the same score.
    """
    import optuna

    shares: dict[str, list[float]] = {name: [] for name in plan.space}
    for number in range(_RESAMPLES if len(scores) >= _FEWEST else 0):
        drawn = np.random.default_rng([plan.seed, number]).integers(0, len(scores), len(scores))
        results = [Result(values[i], "finished", {1: scores[i]}) for i in drawn]
        if len({scores[i] for i in drawn}) < 2:
            continue
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=number)
        found = optuna.importance.get_param_importances(_study(plan, results), evaluator=evaluator)
        for name in shares:
            shares[name].append(found.get(name, 0.0))
    rows = [
        Importance(name, float(np.mean(each)), *map(float, np.quantile(each, (0.05, 0.95))))
        for name, each in shares.items()
        if each
    ]
    return sorted(rows, key=lambda row: (-row.mean, row.name))


def _study(
    plan: Plan, results: Sequence[Result], *, sampler: object = None, storage: object = None, name: str | None = None
) -> "Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize" if plan.maximise else "minimize",
        sampler=sampler,  # type: ignore[arg-type]
        storage=storage,  # type: ignore[arg-type]
        study_name=name,
    )
    study.add_trials([_frozen(plan, result) for result in results])
    return study


def _frozen(plan: Plan, result: Result) -> "FrozenTrial":
    from optuna.trial import TrialState, create_trial

    states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    return create_trial(
        state=states[result.state],
        value=result.last if result.state == "finished" else None,
        params=dict(result.values),
        distributions=_distributions(plan),
        intermediate_values=dict(result.scores),
    )


def _distributions(plan: Plan) -> "dict[str, BaseDistribution]":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, BaseDistribution] = {}
    for name, dimension in plan.dimensions().items():
        if not isinstance(dimension, Range):
            distributions[name] = CategoricalDistribution(dimension)
        elif dimension.whole:
            low, high = int(dimension.low), int(dimension.high)
            distributions[name] = IntDistribution(low, high, log=dimension.scale == "log")
        else:
            distributions[name] = FloatDistribution(dimension.low, dimension.high, log=dimension.scale == "log")
    return distributions


def _value(dimension: Range | list[Scalar], value: Scalar) -> Scalar:
    return dimension.rounded(value) if isinstance(dimension, Range) and isinstance(value, float) else value
