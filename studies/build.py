"""Build an artifact: compute it, write its files, and write a caption with its caveats."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.artifact import Artifact
from studies.registry import REGISTRY, ArtifactSpec
from studies.study import Study
from whet.adapt.checkpoints.loading import BUNDLED
from whet.evaluate.config import EvalConfig
from whet.evaluate.provenance import provenance
from whet.evaluate.report.summary import protocol_name

FEW_PROMPTS = 30  # captions of artifacts with fewer prompts carry a warning
STAND_IN = "whet's models and data stand in for GPT-2, Phi-3 and the Pile"
CUT = "texts longer than the model's context are trained on up to it"
SPLIT = "queries are the first halves of the prompts, the second halves are scored"


@dataclass(frozen=True, slots=True)
class BuiltArtifact:
    """An artifact with its caption and the files it was written to."""

    name: str
    artifact: Artifact
    caption: str
    paths: list[Path]

    @property
    def title(self) -> str:
        return REGISTRY[self.name].title


def build(name: str, study: Study, folder: Path) -> BuiltArtifact:
    """Compute the artifact `name` and write its PNG, SVG and JSON to `folder`.

    Runs that are missing from the study are evaluated first, which may take hours.

    Raises:
        WhetError: As `Study.run`.
        KeyError: If there is no artifact of that name.
    """
    spec = REGISTRY[name]
    artifact = spec.compute(study)
    caption = write_caption(spec, artifact, study.config)
    metadata = {
        "name": name,
        "title": spec.title,
        "caption": caption,
        "command": f"python -m studies {name}",
        "study": describe(study),
        "runs": list(spec.runs),
        **provenance(),
    }
    return BuiltArtifact(name, artifact, caption, artifact.write(folder, name, metadata))


def write_caption(spec: ArtifactSpec, artifact: Artifact, config: EvalConfig) -> str:
    """Return the caption: n, the intervals, notes, and every difference from the paper."""
    sentences = [f"n = {artifact.n:,}; brackets and bands are 90 % bootstrap intervals."]
    if artifact.n < FEW_PROMPTS:
        sentences.append("With so few, rely on the intervals and not on the means.")
    if artifact.note:
        sentences.append(artifact.note)
    differences = [
        STAND_IN if config.model in BUNDLED else "",
        SPLIT if spec.runs and config.leakage == "split" else "",
        CUT if spec.runs and config.training.long_texts == "first" else "",
        spec.differences,
    ]
    if any(differences):
        sentences.append(f"Differences from the paper: {'; '.join(filter(None, differences))}.")
    return " ".join(sentences)


def describe(study: Study) -> dict[str, Any]:
    """Return what a study was computed on, without paths of this machine."""
    return {
        "models": [study.config.model, study.small_model],
        "space": Path(study.data.space).name,
        "documents": len(study.space),
        "embedder": study.space.embedder.name,
        "fingerprint": study.prompts.fingerprint,
        "n": study.config.selection.n,
        "leakage": study.config.leakage,
        "protocol": protocol_name(study.config),
    }
