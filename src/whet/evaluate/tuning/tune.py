"""Choose how to adapt a model on a data space, within some minutes; ours, see docs/models.md.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): every setting is tried on 2 passages,
the better half on 4, and so on. The number of steps is read off the trajectories. What is reported
was measured on fresh passages.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from whet.adapt.config import AdapterName, FullFineTuning
from whet.adapt.model import LanguageModel
from whet.adapt.tuners.state_cache import layer_list
from whet.engine.tuned import TunedSettings, store_tuned
from whet.errors import ModelError
from whet.evaluate.tuning.config import STEPS, TuneConfig
from whet.evaluate.tuning.trials import Bench, HeldOut, Journal, Setting, Trial, hold_out
from whet.io import count_of, progress_bar
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, bootstrap
from whet.select.config import SelectionConfig
from whet.space.opening import is_folder
from whet.space.space import DataSpace
from whet.space.tuning import MIN_PROMPTS, tune_selection

FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25)  # of the default learning rate
RUNGS = (2, 4, 8, 16)  # passages on which settings are compared
LAM_PROMPTS = 64  # documents on which λ' is chosen
SEARCH, LAM = 0.6, 0.7  # shares of the budget after which a stage ends


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What was chosen, and how much was tried."""

    settings: TunedSettings
    trials: int
    resumed: int
    """How many of the trials an interrupted run had finished."""
    is_complete: bool
    """Whether everything was tried that was planned."""
    stored: str
    """File with the settings; empty if they are not stored."""
    reason: str
    """Why they are not stored."""


def tune(
    space: DataSpace,
    model: LanguageModel,
    config: TuneConfig | None = None,
    *,
    progress: bool = False,
) -> TuneReport:
    """Try learning rates, adapters, numbers of steps and λ' on held-out passages of `space`.

    The choice is stored in the space's folder, where commands find it; so is a journal of the
    finished trials, with which an interrupted run goes on. With `n` and `max_trials`, and minutes
    enough, the result does not depend on the speed of the machine.

    Args:
        space: The data space; nothing is stored if it is an address.
        model: The model to adapt, which nothing else can use meanwhile.
        config: How much to try.
        progress: Draw a progress bar on stderr.

    Returns:
        The choice with its measurements.

    Raises:
        ValueError: If fewer than 8 documents can be held out, the filter has a field that no
            document has, or not one trial ended within the budget.
    """
    config = config or TuneConfig()
    return _Tuning(space, model, config).run(progress)


def settings_to_try(model: LanguageModel) -> list[Setting]:
    """The adapters at the default learning rate, then at 2, ½, 4 and ¼ times that."""
    kinds: list[tuple[AdapterName, str | None]] = [("lora", None), ("head", None)]
    try:
        layers = len(layer_list(model.hf_model)[1])
        kinds[1:1] = [("lora", f"last:{layers // 4 or 1}")] * (layers > 1)
    except ModelError:  # they have no usual name, so only all of them can be trained
        pass
    if isinstance(model.adapter_config("auto"), FullFineTuning):
        kinds.insert(0, ("full", None))
    rates = {kind: model.adapter_config(kind).lr for kind, _ in kinds}
    return [Setting(kind, f * rates[kind], last) for f in FACTORS for kind, last in kinds]


class _Tuning:
    """One run of `tune`."""

    def __init__(self, space: DataSpace, model: LanguageModel, config: TuneConfig) -> None:
        self._space, self._model, self._config = space, model, config
        passages = hold_out(space, config.passages, seed=config.seed, where=config.where)
        if len(passages) < MIN_PROMPTS:
            found = count_of(len(passages), "document")
            raise ValueError(
                f"only {found} of {space.path} can be held out, but {MIN_PROMPTS} are needed to "
                "tune: add documents, or use the default settings"
            )
        count = min(RUNGS[-1], len(passages) // 2)
        self._passages, self._fresh = passages[:count], passages[count:]
        self._fingerprint = model.fingerprint
        plan = {
            "model": self._fingerprint, "space": space.manifest.id, "rows": len(space),
            "version": space.manifest.version, "max_length": model.max_length,
            **{name: value for name, value in asdict(config).items()
               if name not in ("minutes", "max_trials")},
        }  # fmt: skip
        folder = space.path if is_folder(space.path) else None
        path = None if folder is None else folder / f"tuning-{self._fingerprint[:8]}.jsonl"
        self._journal = Journal(path, plan)
        self._bench = Bench(space, model, self._journal, seed=config.seed)
        self._start, self._share, self._is_complete = time.monotonic(), SEARCH, True
        self._advance: Callable[[int], None] = lambda n: None

    def run(self, progress: bool) -> TuneReport:
        candidates = settings_to_try(self._model)
        if self._journal.steps is None:
            self._journal.begin(self._config.n or self._affordable_steps(candidates))
        else:
            self._journal.begin(self._journal.steps)
        total = self._planned(len(candidates)) + len(self._fresh)
        with progress_bar("trials", self._config.max_trials or total, show=progress) as advance:
            self._advance = advance
            best, trials = self._search(candidates)
            best, trials = self._choose_lam(best, trials)
            step = _sufficient_step(trials)
            self._share = 1.0
            measured = self._measure(best, step)
        fresh = bool(measured)
        most = None if self._journal.steps == STEPS[-1] else self._journal.steps
        chosen = _settings(self._model.name, best, step, measured or trials, fresh, most)
        path, reason = "", f"{self._space.path} is an address"
        if is_folder(self._space.path):
            try:
                path = str(store_tuned(self._space.path, self._fingerprint, chosen))
                reason = ""
            except OSError as error:
                reason = error.strerror or str(error)
        if self._is_complete and path:
            self._journal.remove()
        used, resumed = len(self._bench.used), self._journal.resumed
        return TuneReport(chosen, used, resumed, self._is_complete, path, reason)

    def _affordable_steps(self, candidates: Sequence[Setting]) -> int:
        """The longest trials of which all that are planned fit the minutes; at least 5 steps."""
        passage = self._passages[0]
        slots = self._bench.make_slots(candidates[0])
        self._bench.measure(slots, candidates[0], passage, (1,))  # what is computed only once
        start = time.monotonic()
        trial = self._bench.measure(slots, candidates[0], passage, (2,))
        score_s = max(0.0, time.monotonic() - start - trial.seconds[2])
        step_s = trial.seconds[2] / 2
        seconds = 60 * SEARCH * self._config.minutes / self._planned(len(candidates))
        fitting = (n for n in STEPS[:0:-1] if n * step_s + (STEPS.index(n) + 1) * score_s < seconds)
        return next(fitting, STEPS[1])

    def _planned(self, candidates: int) -> int:
        """Trials of the search."""
        count, before = 0, 0
        for size in _rungs(len(self._passages)):
            count += candidates * (size - before)
            candidates, before = math.ceil(candidates / 2), size
        return count

    def _may_use(self, is_stored: bool) -> bool:
        """Whether the budget of the present stage allows another trial, which is then counted."""
        expected = float(np.mean(self._bench.spent)) if self._bench.spent else 0.0
        if self._has_room(0.0 if is_stored else expected):
            self._advance(1)
            return True
        self._is_complete = False
        return False

    def _has_room(self, expected_s: float) -> bool:
        """Whether that many seconds, and another trial, are left to the present stage."""
        share, config = self._share, self._config
        limit = config.max_trials
        if limit is not None and len(self._bench.used) >= max(1, int(share * limit)):
            return False
        used_s = time.monotonic() - self._start if expected_s else 0.0
        return used_s + expected_s <= share * 60 * config.minutes

    def _trials(self, setting: Setting, passages: Sequence[HeldOut]) -> list[Trial] | None:
        steps = [step for step in STEPS if step <= (self._journal.steps or 0)]
        return self._bench.run(setting, passages, steps, self._may_use)

    def _search(self, candidates: Sequence[Setting]) -> tuple[Setting, list[Trial]]:
        """The best setting, with its trials on the passages on which it was compared."""
        best: tuple[Setting, list[Trial]] | None = None
        self._share = 1.0  # rather use all minutes than not try the default at all
        self._trials(candidates[0], self._passages[: _rungs(len(self._passages))[0]])
        self._share = SEARCH
        for size in _rungs(len(self._passages)):
            tried = [(s, self._trials(s, self._passages[:size])) for s in candidates]
            ranked = sorted(((s, t) for s, t in tried if t is not None), key=lambda p: _least(p[1]))
            if not ranked or (best is not None and len(ranked) < len(candidates)):
                break  # not all were compared
            best = ranked[0]
            if len(ranked) < len(candidates):
                break
            candidates = [setting for setting, _ in ranked[: math.ceil(len(ranked) / 2)]]
        if best is None:
            spent = self._bench.spent
            took = f" (a trial took {np.mean(spent):.1f} s)" if spent else ""
            limit = f"minutes is {self._config.minutes:g}"
            if self._config.max_trials is not None:
                limit += f" and max_trials is {self._config.max_trials}"
            raise ValueError(f"{limit}: not one setting was tried on 2 passages{took}: raise it")
        return best

    def _choose_lam(self, best: Setting, trials: list[Trial]) -> tuple[Setting, list[Trial]]:
        """Also try the λ' that predicts held-out documents best; it must be better beyond noise."""
        self._share = LAM
        steps = self._journal.steps or 1
        if not self._has_room(self._bench.embed_s * LAM_PROMPTS * steps):
            return best, trials
        try:
            config = SelectionConfig(n=steps, where=self._config.where)
            lam = tune_selection(
                self._space, config, prompts=LAM_PROMPTS, seed=self._config.seed
            ).lam
        except ValueError:  # too few documents have two halves that can be embedded
            return best, trials
        other = replace(best, lam=lam)
        again = self._trials(other, self._passages[: len(trials)])
        if again is None:
            return best, trials
        step = _sufficient_step(trials)
        pairs = np.array([[a.bits[step], b.bits[step]] for a, b in zip(again, trials, strict=True)])
        change = bootstrap(pairs, lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum() - 1))
        return (other, again) if change.high < 0 else (best, trials)

    def _measure(self, best: Setting, step: int) -> list[Trial]:
        """As many trials on fresh passages as the budget allows."""
        measured: list[Trial] = []
        for passage in self._fresh:
            trials = self._bench.run(best, [passage], [step], self._may_use)
            if trials is None:
                break
            measured += trials
        return measured


def _rungs(passages: int) -> list[int]:
    """Numbers of passages on which settings are compared, ascending."""
    return sorted({min(size, passages) for size in RUNGS})


def _least(trials: Sequence[Trial]) -> float:
    """The smallest share of the base model's bits at any number of steps."""
    base = sum(trial.base_bits for trial in trials)
    return min(sum(trial.bits[step] for trial in trials) / base for step in trials[0].bits)


def _sufficient_step(trials: Sequence[Trial]) -> int:
    """The first number of steps whose bits are within one standard error of the best's."""
    steps = sorted(trials[0].bits)
    shares = np.array([[t.bits[s] / t.base_bits for s in steps] for t in trials])
    shares = np.where(np.isfinite(shares), shares, 1e9)
    best = shares[:, shares.mean(axis=0).argmin()]
    for step, share in zip(steps, shares.T, strict=True):
        excess = share - best
        error = excess.std(ddof=1) / math.sqrt(len(excess)) if len(excess) > 1 else 0.0
        if excess.mean() <= error:
            return step
    raise AssertionError("the best number of steps is within any distance of itself")


def _settings(
    model: str, setting: Setting, step: int, trials: Sequence[Trial], fresh: bool,
    most_steps: int | None,
) -> TunedSettings:  # fmt: skip
    rows = np.array([[t.base_bits, t.bits[step], t.num_bytes] for t in trials])

    def estimate(value: Callable[[Array], float]) -> Estimate:
        return bootstrap(rows, lambda drawn: value(drawn.sum(axis=0)))

    return TunedSettings(
        model=model,
        adapter=setting.adapter,
        lr=setting.lr,
        layers=setting.layers,
        n=step,
        lam=setting.lam,
        before=estimate(lambda total: float(total[0] / total[2])),
        after=estimate(lambda total: float(total[1] / total[2])),
        gain=estimate(lambda total: float(1 - total[1] / total[0])),
        seconds=float(np.mean([trial.seconds[step] for trial in trials])),
        fresh=fresh,
        most_steps=most_steps,
    )
