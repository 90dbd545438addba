"""The settings that `whet tune` chose for a model on a data space, stored in the space's folder.

The file `tuned.json` has one entry per model, by the fingerprint of its weights.
"""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from whet.adapt.config import AdapterName, AdapterOptions
from whet.adapt.model import LanguageModel
from whet.config import check_choices
from whet.io import write_json
from whet.maths.statistics import Estimate
from whet.select.config import SelectionConfig
from whet.space.opening import is_folder

TUNED_FILE = "tuned.json"
FORMAT = 1
MIN_GAIN = 0.01  # share of the base model's bits: less is not worth the time of adapting
MIN_FRESH = 4  # passages without which there is no verdict
OTHER_TRAINING = {"adapter", "layers", "r", "lora_alpha", "target_modules", "optimizer"}
"""Options with which something else is trained than what the learning rate was tuned for."""

Verdict = Literal["adapt", "do not adapt", "unclear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedSettings:
    """What was chosen for one model on one data space, and what it gained there."""

    model: str
    """Name of the model."""
    adapter: AdapterName
    lr: float
    layers: str | None
    """`last:N`; None for all layers."""
    n: int
    lam: float | None
    """λ'; None for the data space's own."""
    before: Estimate
    """Bits per byte of the base model."""
    after: Estimate
    """Bits per byte after adaptation."""
    gain: Estimate
    """Share of the base model's bits that adaptation saves; negative if it adds some."""
    seconds: float
    """Seconds per request for selecting and training, without generation."""
    fresh: bool
    """Whether the numbers are those of passages that nothing was chosen on."""
    most_steps: int | None = None
    """Most steps that were tried; None if these are the 50 of a trial without limits."""
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        gain, verdict = self.gain, "unclear"
        if self.fresh and gain.n >= MIN_FRESH:
            verdict = "adapt" if gain.low > 0 else "unclear"
            if gain.value < MIN_GAIN:  # more steps may gain more
                verdict = "do not adapt" if self.most_steps is None else "unclear"
        object.__setattr__(self, "verdict", verdict)
        AdapterOptions(name=self.adapter, lr=self.lr, layers=self.layers)
        SelectionConfig(n=self.n, lam="embedder" if self.lam is None else self.lam)
        check_choices(self)

    @property
    def options(self) -> dict[str, Any]:
        """The chosen values by their flat names."""
        names = ("adapter", "lr", "layers", "n", "lam")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        gain = self.gain
        words = "gains" if gain.value >= 0 else "costs"
        line = f"adaptation {words} {100 * abs(gain.value):.1f} % here"
        if gain.has_interval:
            line += f" (90 % interval {100 * gain.low:.1f} to {100 * gain.high:.1f} %"
            line += f", {gain.n} passages)"
        if self.verdict == "adapt":
            return line + ": worth it"
        if self.verdict == "do not adapt":
            return line + ": do not adapt, use retrieval instead"
        is_measured = self.fresh and gain.n >= MIN_FRESH
        reason = "too few passages were measured"
        if is_measured and self.most_steps is not None:
            reason = f"at most {self.most_steps} steps were tried"
        return line + f": unclear, because {reason}; allow more minutes or a larger -n"

    @classmethod
    def of_record(cls, record: Any) -> "TunedSettings":
        """The settings in an entry of the file.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            values = {name: value for name, value in record.items() if name != "verdict"}
            for name in ("before", "after", "gain"):
                values[name] = Estimate(**values[name])
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it is damaged: {error}") from error


@dataclass(frozen=True, slots=True)
class TunedDefaults:
    """Values in place of defaults, and the line that reports them."""

    options: dict[str, Any]
    """By their flat names; empty if there are none."""
    line: str
    """Empty if the data space was never tuned."""


def is_tuned(space: str | Path) -> bool:
    """Whether settings of any model are stored for a data space."""
    return is_folder(space) and (Path(space) / TUNED_FILE).exists()


def tuned_defaults(
    space: str | Path, model: LanguageModel, given: Collection[str]
) -> TunedDefaults:
    """The values that `whet tune` chose, for the options that the user did not give.

    If a given option makes it another training than the tuned one, only λ' is used. With the
    verdict `do not adapt` nothing is replaced. A file that is damaged, or only about other models,
    is ignored. Reads one small file.

    Args:
        space: Folder or address of the data space.
        model: The model that is going to be adapted.
        given: Flat names of the options that the user gave.
    """
    if not is_tuned(space):
        return TunedDefaults({}, "")
    path = Path(space) / TUNED_FILE
    try:
        entries = _read(path)
        fingerprint = model.fingerprint
        if fingerprint not in entries:
            names = ", ".join(sorted({str(e.get("model")) for e in entries.values()})) or "no model"
            line = f"{path} is about {names}, not {model.name}: ignored; --model chooses the model"
            return TunedDefaults({}, line)
        tuned = TunedSettings.of_record(entries[fingerprint])
    except (OSError, ValueError, AttributeError) as error:
        return TunedDefaults({}, f"{path} cannot be read, so it is ignored ({error})")
    if tuned.verdict == "do not adapt":
        return TunedDefaults({}, f"tuned: {tuned.summary} (-n 0 answers without it)")
    options = {name: value for name, value in tuned.options.items() if name not in given}
    if OTHER_TRAINING & set(given):
        options = {name: value for name, value in options.items() if name == "lam"}
    shown = ", ".join(f"{name} {_short(value)}" for name, value in options.items()) or "nothing"
    return TunedDefaults(options, f"tuned: {shown}; {tuned.summary}")


def store_tuned(space: Path, fingerprint: str, tuned: TunedSettings) -> Path:
    """Write the settings of one model into the folder of a data space, atomically.

    A damaged file is replaced.

    Raises:
        OSError: If it cannot be written.
    """
    path = space / TUNED_FILE
    try:
        entries = _read(path)
    except (FileNotFoundError, ValueError):
        entries = {}
    write_json(path, {"format": FORMAT, "models": entries | {fingerprint: asdict(tuned)}})
    return path


def _read(path: Path) -> dict[str, Any]:
    """The entries by fingerprint. Raises ValueError if the file is damaged or of a newer format."""
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("models"), dict):
        raise ValueError("it is damaged: expected an object with `models`")
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {content.get('format')!r}: expected {FORMAT}")
    models: dict[str, Any] = content["models"]
    return models


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
