"""An artefact made: its views' files, and the caption that says what it is and is not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.adapt.loading import BUNDLED
from whet.evaluate.config import EvalConfig
from whet.evaluate.provenance import provenance
from whet.evaluate.reproduce.catalogue import CATALOGUE, Artefact
from whet.evaluate.reproduce.shown import Shown
from whet.evaluate.reproduce.study import Study

FEW = 30  # prompts under which a caption warns
STAND_IN = "whet's models and data stand in for GPT-2, Phi-3 and the Pile"
HALF = "queries are the first halves of the prompts, the second halves are scored"


@dataclass(frozen=True, slots=True)
class Made:
    """An artefact as it was shown, with its caption and files."""

    name: str
    shown: Shown
    caption: str
    paths: list[Path]

    @property
    def title(self) -> str:
        return CATALOGUE[self.name].title


def make(name: str, study: Study, out: Path) -> Made:
    """Show the artefact called `name` and write its PNG, SVG and JSON to `out`.

    Raises:
        WhetError: As `Study.run`.
        ValueError: If there is none of that name.
    """
    artefact = CATALOGUE[name]
    shown = artefact.show(study)
    caption = caption_of(artefact, shown, study.switches)
    about = {
        "name": name,
        "title": artefact.title,
        "caption": caption,
        "command": f"whet reproduce {name}",
        "study": described(study),
        "runs": list(artefact.runs),
        **provenance(),
    }
    return Made(name, shown, caption, shown.write(out, name, about))


def caption_of(artefact: Artefact, shown: Shown, switches: EvalConfig) -> str:
    """What the numbers are, over how many, and what sets them apart from the paper's."""
    parts = [f"n = {shown.n:,}; brackets and bands: 90 % bootstrap intervals."]
    if shown.n < FEW:
        parts.append("Few: read the intervals, not the means.")
    if shown.note:
        parts.append(shown.note)
    differs = [
        STAND_IN if switches.model in BUNDLED else "",
        HALF if artefact.runs and switches.leakage == "split" else "",
        artefact.differs,
    ]
    if any(differs):
        parts.append(f"Not the paper's: {'; '.join(filter(None, differs))}.")
    return " ".join(parts)


def described(study: Study) -> dict[str, Any]:
    """What a study is of, without paths of this machine."""
    return {
        "models": [study.switches.model, study.small],
        "space": Path(study.data.space).name,
        "documents": len(study.space),
        "embedder": study.space.embedder.name,
        "fingerprint": study.prompts.fingerprint,
        "n": study.switches.n,
        "leakage": study.switches.leakage,
    }
