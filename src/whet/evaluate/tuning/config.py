"""How much `whet tune` tries; the options of the command are made from it."""

from dataclasses import dataclass

from whet.data.filters import as_filter
from whet.maths.arrays import as_count, as_positive

STEPS = (2, 5, 10, 20, 50)  # after which a trial scores


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """How much to try."""

    minutes: float = 10.0
    """Minutes after which no further trial begins."""
    n: int | None = None
    """Most steps of a trial: 2, 5, 10, 20 or 50 [default: as many as the minutes allow]."""
    passages: int = 48
    """Most passages to hold out, for the search and for the final measurement together."""
    max_trials: int | None = None
    """Most trials, those of an interrupted run included [default: as many as the minutes allow]."""
    seed: int = 0
    """Seed of the draw of the passages."""
    where: str | None = None
    """Filter that passages and candidates must pass, such as `set == "github"`."""

    def __post_init__(self) -> None:
        as_positive(self.minutes, "minutes")
        as_count(self.passages, "passages")
        if self.max_trials is not None:
            as_count(self.max_trials, "max_trials")
        as_filter(self.where)
        if self.n is not None and self.n not in STEPS:
            raise ValueError(f"n is {self.n}: expected one of {', '.join(map(str, STEPS))}")
