"""When is sharpening worth it? Learned from a run on the user's own space, told before any step.

For each plan (a method of the run and a number of steps) the bits per byte that it saves are
predicted by a ridge regression on what is known when a prompt comes: σ after as many picks, the
largest cosine, and the base model's bits per byte on the prompt. Its seconds are its mean. The
plan of greatest worth is advised, which may be no step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from whet.adapt.model import LanguageModel
from whet.config import parse_fields
from whet.errors import RunFolderError
from whet.evaluate.config import DYNAMIC, EvalConfig
from whet.evaluate.evaluator import retriever
from whet.evaluate.provenance import space_record
from whet.evaluate.results import Run
from whet.evaluate.uncertainty import ALPHAS, stopped_at
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, mean_estimate
from whet.space.space import DataSpace

FEWEST = 10  # prompts of a calibration run
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """A number of steps of a method."""

    method: str
    steps: int
    saved: float
    """Bits per byte that it is predicted to save."""
    seconds: float
    """That it takes."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule for choosing plans, judged on prompts that it was not made from."""

    name: str
    steps: float
    """Taken in the mean."""
    saved: Estimate
    """Bits per byte."""
    seconds: float
    regret: Estimate
    """Worth lost against the oracle, which knows the best plan of every prompt, bits per byte."""


@dataclass(frozen=True, slots=True, eq=False)
class _Outcomes:
    """What each plan did for each prompt; the last plan is no step."""

    saved: Float[Array, "n p"]
    """Bits per byte."""
    seconds: Float[Array, "n p"]
    features: Float[Array, "n q f"]
    """What is known beforehand, for each plan but the last."""
    adaptive: Int[Array, "n a"]
    """The plan that adaptive stopping takes, for each method and α."""

    def of(self, rows: Array) -> "_Outcomes":
        return _Outcomes(
            self.saved[rows], self.seconds[rows], self.features[rows], self.adaptive[rows]
        )


class Advisor:
    """Plans for prompts, fitted on a run."""

    def __init__(self, run: Run, worth: float = 0.0) -> None:
        """Fit one regression a plan.

        Raises:
            RunFolderError: If the run has fewer than 10 prompts, or no method that selects and steps.
            ValueError: If `worth`, bits per byte that a second must save, is negative.
        """
        if not worth >= 0:
            raise ValueError(f"worth is {worth}: expected 0 or more bits per byte a second")
        if len(run) < FEWEST:
            raise RunFolderError(f"{run.folder} holds {len(run)} prompts: advice needs {FEWEST}")
        self._run, self._worth = run, worth
        trained = [m for m in run.methods if run.tokens(m).any()]
        self._methods = [m for m in trained if m.partition("(")[0] != DYNAMIC]
        self._plans = [(m, s) for m in self._methods for s in run.steps if s]
        if not self._plans:
            raise RunFolderError(
                f"{run.folder} has no method that selects and steps: nothing to advise"
            )
        self._outcomes = self._measured()
        self._models = self._fit(self._outcomes)

    def plan(self, space: DataSpace, model: LanguageModel, prompt: str) -> Plan:
        """The plan for `prompt`; of no step where none is worth it. Costs a selection a method.

        Raises:
            RunFolderError: If the run is of another data space.
            ValueError: If the prompt is empty, or shares nothing with the data space.
        """
        run, known = self._run, []
        if space_record(space) != run.meta["space"]:
            raise RunFolderError(
                f"{run.folder} is of another data space, or of this one before a change"
            )
        told = {name: v for name, v in run.meta["switches"].items() if v is not None}
        switches = EvalConfig(**parse_fields(EvalConfig, told, str(run.folder)))
        asked = model.score(prompt).bits_per_byte
        [near] = space.search(space.embedder.encode([prompt]), min(switches.k, len(space)))
        cosine = np.abs(near.scores).max()
        for name in self._methods:
            method = switches.method(name)
            found = retriever(space, method).select(prompt, method.switches.n)
            if method.switches.alpha is not None:
                found = found.stop_at(method.switches.alpha)
            sigma = found.selection.sigma
            known += [
                _features(sigma[min(step, len(sigma) - 1)], cosine, asked)
                for step in run.steps
                if step
            ]
        saved = self._predict(self._models, np.stack(known)[None])
        at = int(self._choose(saved, self._outcomes)[0])
        chosen, steps = [*self._plans, ("", 0)][at]
        seconds = float(self._outcomes.seconds[:, at].mean())
        return Plan(chosen, steps, float(saved[0, at]), seconds)

    def policies(self) -> tuple[Policy, ...]:
        """What choosing reaches on prompts that nothing was fitted on, in five parts of the run."""
        n, none = len(self._run), len(self._plans)
        chosen = {name: np.full(n, none) for name in ("advised", "one plan", "one α", "no step")}
        for train, test in KFold(FOLDS, shuffle=True, random_state=0).split(np.arange(n)):
            seen, unseen = self._outcomes.of(train), self._outcomes.of(test)
            saved = self._predict(self._fit(seen), unseen.features)
            chosen["advised"][test] = self._choose(saved, seen)
            worth = self._worths(seen)
            chosen["one plan"][test] = worth.mean(axis=0).argmax()
            stopped = np.take_along_axis(worth, seen.adaptive, axis=1).mean(axis=0)
            chosen["one α"][test] = unseen.adaptive[:, stopped.argmax()]
        worth = self._worths(self._outcomes)
        chosen = {"oracle": worth.argmax(axis=1)} | chosen
        return tuple(self._policy(name, at, worth) for name, at in chosen.items())

    def _policy(self, name: str, at: Int[Array, " n"], worth: Float[Array, "n p"]) -> Policy:
        rows = np.arange(len(at))
        steps = np.array([*(step for _, step in self._plans), 0])
        return Policy(
            name,
            float(steps[at].mean()),
            mean_estimate(self._outcomes.saved[rows, at]),
            float(self._outcomes.seconds[rows, at].mean()),
            mean_estimate(worth.max(axis=1) - worth[rows, at]),
        )

    def _measured(self) -> _Outcomes:
        run, n = self._run, len(self._run)
        base, sizes = run.column("base_bits"), run.column("bytes")
        asked = run.column("query_bits") / run.column("query_bytes")
        cosine = np.array([abs(own[0]) for own in run.prompts["cosines"].to_pylist()])
        saved = [(base - run.bits(*plan)) / sizes for plan in self._plans]
        known = [_features(run.sigma(*plan), cosine, asked) for plan in self._plans]
        adaptive = []
        for method in self._methods:
            first = self._plans.index((method, run.steps[1]))
            for alpha in ALPHAS:
                at = stopped_at(run, method, alpha)  # 0 is no step
                adaptive.append(np.where(at == 0, len(self._plans), first + at - 1))
        return _Outcomes(
            np.stack([*saved, np.zeros(n)], axis=1),
            np.stack([*(run.seconds(*plan) for plan in self._plans), np.zeros(n)], axis=1),
            np.stack(known, axis=1),
            np.stack(adaptive, axis=1),
        )

    def _fit(self, seen: _Outcomes) -> list[Pipeline]:
        return [
            make_pipeline(StandardScaler(), Ridge()).fit(seen.features[:, i], seen.saved[:, i])
            for i in range(len(self._plans))
        ]

    def _predict(self, models: list[Pipeline], known: Float[Array, "n q f"]) -> Float[Array, "n p"]:
        """Bits per byte that each plan is predicted to save; 0 for no step."""
        saved = [model.predict(known[:, i]) for i, model in enumerate(models)]
        return np.stack([*saved, np.zeros(len(known))], axis=1)

    def _choose(self, saved: Float[Array, "n p"], seen: _Outcomes) -> Int[Array, " n"]:
        """The plan of greatest predicted worth; a plan's seconds are its mean among `seen`."""
        choice: Int[Array, " n"] = (saved - self._worth * seen.seconds.mean(axis=0)).argmax(axis=1)
        return choice

    def _worths(self, outcomes: _Outcomes) -> Float[Array, "n p"]:
        worths: Float[Array, "n p"] = outcomes.saved - self._worth * outcomes.seconds
        return worths


def _features(sigma: Any, cosine: Any, asked: Any) -> Float[Array, "..."]:
    """σ, the base bits per byte of the prompt, their product (σ̂), and the largest |cosine|."""
    return np.stack(np.broadcast_arrays(sigma, asked, sigma * asked, cosine), axis=-1)
