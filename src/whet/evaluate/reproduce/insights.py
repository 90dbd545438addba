"""The paper's insights and formal statements, each against a measured number, by a stated rule.

Source: SIFT, arXiv 2410.08020, Insights 1 to 15; Propositions 2.1 and 3.3, Theorems 3.2 and 4.1.
The page docs/insights.md is made of a committed results file by `page`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.errors import SourceError
from whet.evaluate.reproduce.shown import spelled
from whet.maths.statistics import Estimate

HOLDS, WEAKLY, UNSEEN, UNMEASURED = (
    "holds", "holds weakly", "not seen on this data", "not measured here",
)  # fmt: skip


HEAD = """# The paper's insights, measured

Made by `docs/make_insights.py` of `benchmarks/results/insights.json`; do not edit.

The fifteen insights and the formal statements of SIFT
([arXiv 2410.08020](https://arxiv.org/abs/2410.08020)), each with one number of ours, of the study
with as many steps:

{studies}

The paper: GPT-2 and larger, 1,812 prompts, 50 steps, 210 million documents. Ours are small: a
verdict is about these data, never about the paper.

**The rule.** A claim states a range for its number. *Holds*: the whole 90 % interval is within it
and n is at least 10. *Holds weakly*: the value is within it. *Not seen on this data*: it is not.
*Not measured here*: the study has no such number. Differences are paired by prompt; lower bits per
byte are better. Here: {told}.

| insight | claim | number | claimed | measured [90 %] | n | steps | command | verdict |
|---|---|---|---|---|---|---|---|---|
"""
STUDY = (
    "* {n} gradient steps: {models} (main, small), a data space of "
    "{documents:,} documents (`{space}`, embedder {embedder})"
)
FEWEST = 10


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement and the number that it says something of."""

    name: str
    says: str
    artefact: str
    number: str
    low: float = float("-inf")
    high: float = float("inf")
    unit: str = "points of %"

    def verdict(self, measured: Estimate | None) -> str:
        """By the claimed range: the interval is within it, or the value alone, or neither.

        Of fewer than `FEWEST` a bootstrap interval is too narrow: no more than weakly, then.
        """
        if measured is None:
            return UNMEASURED
        if not self.low <= measured.value <= self.high:
            return UNSEEN
        inside = self.low <= measured.low and measured.high <= self.high
        return HOLDS if inside and measured.n >= FEWEST else WEAKLY

    @property
    def range(self) -> str:
        """The claimed range in signs."""
        if self.low == self.high:
            return f"= {self.low:g}"
        if self.low == float("-inf"):
            return f"≤ {self.high:g}"
        if self.high == float("inf"):
            return f"≥ {self.low:g}"
        return f"{self.low:g} … {self.high:g}"


CLAIMS = (
    Claim("1", "SIFT selects better data than NN", "table1", "SIFT − NN", high=0),
    Claim("2", "SIFT is robust to λ': the worst of 1e-8 … 10 is on a par with NN (within 1 point)",
          "table11", "worst λ' − NN", high=1),
    Claim("3", "SIFT selects data the right number of times: where it picks many different texts "
          "it beats NN-F", "fig6", "SIFT − NN-F where many", high=0),
    Claim("3", "… and where it picks few it beats NN", "fig6", "SIFT − NN where few", high=0),
    Claim("4", "Test-time fine-tuning improves language modelling", "table1", "SIFT", high=100,
          unit="% of base"),
    Claim("4", "… and is better than the same texts in context, or on a par", "table6",
          "steps − in context", high=0),
    Claim("5", "Uncertainty predicts the model's error: σ_n (the paper: about 0.4)", "table12",
          "σ with bits per byte", low=0, unit="Pearson"),
    Claim("5", "… and σ̂_n more so (the paper: 0.5 or more)", "table12", "σ̂ with bits per byte",
          low=0.5, unit="Pearson"),
    Claim("5", "Adaptive stopping is no worse than a fixed number of steps of equal mean", "fig26",
          "adaptive − fixed", high=0),
    Claim("6", "The improvement over NN grows with the data", "fig10", "SIFT − NN, 100 % − 3 %",
          high=0),
    Claim("7", "Points of negative cosine may help", "insight7", "SIFT − SIFT, positive only",
          high=0),
    Claim("8", "Normalising embeddings helps: NN", "fig11", "normalised − not, NN", high=0),
    Claim("8", "… and SIFT", "fig11", "normalised − not, SIFT", high=0),
    Claim("9", "A smaller model, sharpened, is better than a larger base model", "table2",
          "small + SIFT − main base", high=0, unit="bits per byte"),
    Claim("10", "Steps beat context on hard sets (math, code, papers, law)", "table6",
          "steps − in context, hard sets", high=0),
    Claim("11", "Gains are largest for sets with a small share of the data", "fig12",
          "share with % of base", low=0, unit="Spearman over sets"),
    Claim("12", "The order of the steps does not matter (within 1 point)", "fig13",
          "NN, reversed − NN", low=-1, high=1),
    Claim("13", "Steps on the last linear layer alone help too", "fig14", "head", high=100,
          unit="% of base"),
    Claim("14", "LoRA reaches roughly what full training does (within 3 points)", "fig15",
          "LoRA − full", low=-3, high=3),
    Claim("15", "Larger models learn faster: they overfit more to one repeated text", "fig16-17",
          "NN-F, main − small", low=0),
    Claim("Proposition 2.1 (K.1)", "Repeating the nearest never gets below 1 − cos²", "statements",
          "K.1: NN-F stays above its floor, %", low=100, unit="% of prompts"),
    Claim("Proposition 2.1 (K.1)", "… and SIFT does", "statements",
          "K.1: σ² of SIFT − floor of NN-F", high=0, unit="σ²"),
    Claim("Theorem 3.2", "Predictions are within β σ of the truth with probability 0.9",
          "statements", "3.2: within the bound, %", low=90, unit="% of models"),
    Claim("Proposition 3.3", "One gradient step is near the regularised minimiser: within the "
          "bound", "statements", "3.3: distance ÷ bound", high=1 + 1e-6, unit="ratio"),
    Claim("Theorem 4.1 (C.2)", "σ²_n is within its bound of σ²_∞", "statements",
          "C.2: within the bound, %", low=100, unit="% of cases"),
    Claim("Assumption C.1", "ψ is submodular: no candidate's gain ever rises", "fig9",
          "gains of any candidate that rise, %", high=0, unit="% of gains"),
)  # fmt: skip


def collect(folder: Path, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The numbers of the artefacts in `folder`, as the results file keeps them.

    Those of the results `before` that are not made anew are kept, and so is what they are of.

    Raises:
        SourceError: If there are none, or they are of different studies.
    """
    found: dict[str, Any] = {}
    studies = list[dict[str, Any]]()
    for path in sorted(folder.glob("*.json")):
        made = json.loads(path.read_text(encoding="utf-8"))
        if "numbers" in made:
            keys = ("command", "caption", "numbers", "n", "commit", "study")
            found[made["name"]] = {key: made[key] for key in keys}
            studies.append(made["study"])
    if not found:
        raise SourceError(f"{folder} holds no artefacts: make them with `whet reproduce all`")
    if any(study != studies[0] for study in studies):
        raise SourceError(
            f"{folder} holds artefacts of different studies: choose another --study for each"
        )
    for name, made in before["artefacts"].items() if before else ():
        found.setdefault(name, made)
    return {"artefacts": dict(sorted(found.items()))}


def page(results: dict[str, Any]) -> str:
    """docs/insights.md: a row a claim with its number, n, command and verdict."""
    rows = [_row(claim, results["artefacts"]) for claim in CLAIMS]
    tally = {v: sum(row.endswith(f"**{v}** |") for row in rows)
             for v in (HOLDS, WEAKLY, UNSEEN, UNMEASURED)}  # fmt: skip
    told = ", ".join(f"{count} {verdict}" for verdict, count in tally.items())
    head = HEAD.format(studies="\n".join(_studies(results["artefacts"])), told=told)
    return head + "\n".join(rows) + "\n" + _vacuous(results["artefacts"])


def _studies(artefacts: dict[str, Any]) -> list[str]:
    """A line a study that a claim's number is of, the one with the most steps first."""
    claimed = {claim.artefact for claim in CLAIMS} & artefacts.keys()
    studies = {json.dumps(artefacts[name]["study"], sort_keys=True) for name in claimed}
    known = sorted(map(json.loads, studies), key=lambda study: -study["n"])
    return [STUDY.format(**study | {"models": " and ".join(study["models"])}) for study in known]


def _row(claim: Claim, artefacts: dict[str, Any]) -> str:
    measured = _measured(claim.artefact, claim.number, artefacts)
    what = f"{claim.number.partition(': ')[2] or claim.number}, {claim.unit}"
    value, n, steps = "–", "–", "–"
    if measured:
        value, n = spelled(measured), str(measured.n)
        steps = str(artefacts[claim.artefact]["study"]["n"])
    command = f"`whet reproduce {claim.artefact}`"
    verdict = f"**{claim.verdict(measured)}**"
    cells = (claim.name, claim.says, what, claim.range, value, n, steps, command, verdict)
    return "| " + " | ".join(cells) + " |"


def _measured(artefact: str, number: str, artefacts: dict[str, Any]) -> Estimate | None:
    made = artefacts.get(artefact, {}).get("numbers", {}).get(number)
    return Estimate(**made) if made else None


def _vacuous(artefacts: dict[str, Any]) -> str:
    """What the bounds that hold are worth."""
    said = {name: _measured("statements", f"{name}: bounds that say nothing, %", artefacts)
            for name in ("3.2", "C.2")}  # fmt: skip
    told = [f"{e.value:.0f} % of the bounds of {name}" for name, e in said.items() if e]
    if not told:
        return ""
    return (
        f"\nA bound that holds may say nothing: {' and '.join(told)} are no better than what is "
        "true of itself (a distance of at most 1, a variance of at most σ²_0).\n"
    )
