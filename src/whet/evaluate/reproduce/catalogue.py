"""Every artefact: what it is a view of, the view, and what sets it apart from the paper's."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from whet.evaluate.reproduce import compute, figures, ground, tables, theory
from whet.evaluate.reproduce.ground import Ground
from whet.evaluate.reproduce.shown import Shown
from whet.evaluate.reproduce.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A table or figure of the paper, or one that its text asks for."""

    title: str
    view: Callable[..., Shown]
    runs: tuple[str, ...] = ()
    """Of `PLANS`, joined by +; the view gets one run for each."""
    ground: bool = False
    """Whether the view gets the prompts and the data space too, last."""
    differs: str = ""
    """From the paper's, beside what a study's own models, data and leakage do."""

    def show(self, study: Study) -> Shown:
        """The view, after the runs that it lacks were made.

        Raises:
            RunFolderError: If a run lacks what the view needs.
        """
        given: list[Any] = [study.run(spec) for spec in self.runs]
        if self.ground:
            given.append(Ground.of(study.space, study.prompts, study.data.set_field))
        return self.view(*given)


def _steps(methods: dict[str, str], pair: tuple[str, str] | None = None, title: str = "") -> Any:
    return partial(figures.over_steps, methods=methods, pair=pair, title=title)


BOTH = ("core", "small")
CATALOGUE = {
    "table1": Artefact(
        title="Table 1: bits per byte by set, main model",
        view=tables.by_set, runs=("core",),
    ),
    "table2": Artefact(
        title="Table 2: base models and the same models sharpened",
        view=tables.absolute, runs=BOTH, differs="two models of our own instead of a leaderboard",
    ),
    "table3": Artefact(
        title="Table 3: what λ, η and ρ do to diversity",
        view=ground.trade_off, ground=True, differs="the paper states directions, here measured",
    ),
    "table4": Artefact(
        title="Table 4: bits per byte by set, small model",
        view=tables.by_set, runs=("small",), differs="a smaller model than table1's, not a larger",
    ),
    "table6": Artefact(
        title="Table 6: in context or sharpened, main model",
        view=tables.in_context, runs=("core+context",),
        differs="the context's budget is exact and every window has the texts",
    ),
    "table7": Artefact(
        title="Table 7: in context or sharpened, small model",
        view=tables.in_context, runs=("small+small-context",), differs="as table6",
    ),
    "table8": Artefact(
        title="Table 8: in context or sharpened with LoRA, small model",
        view=partial(tables.in_context, tuned="sift(mode=lora)"), runs=("small+small-context",),
        differs="as table6; LoRA of rank 32 at a rate that was not tuned",
    ),
    "table11": Artefact(
        title="Table 11: SIFT by λ' and set", view=tables.noises, runs=("core+lambda",),
        differs="the paper's table was not at hand; its range of λ', 1e-8 to 10",
    ),
    "table12": Artefact(
        title="Table 12: does σ predict bits per byte?", view=tables.predictive, runs=("core",),
        differs="the paper's table was not at hand; its coefficients are about 0.4 (σ), 0.5 (σ̂)",
    ),
    "fig1": Artefact(
        title="Figure 1: SIFT, NN and NN-F over gradient steps", runs=("core",),
        view=_steps({"sift": "SIFT", "nearest": "NN", "nearest-repeated": "NN-F"},
                    ("sift", "nearest")),
    ),
    "fig4": Artefact(
        title="Figure 4: overhead of SIFT's selection over NN's", view=ground.overhead, ground=True,
        differs="one process, no servers: the search takes milliseconds, not a second",
    ),
    "fig5": Artefact(
        title="Figure 5: by model, and by λ'", view=figures.models,
        runs=("core+lambda", "small+small-lambda"), differs="two models of our own",
    ),
    "fig6": Artefact(
        title="Figure 6: by how many different texts SIFT picks", view=figures.unique_points,
        runs=("core",), differs="groups by a fifth and half of the steps",
    ),
    "fig7": Artefact(
        title="Figure 7: base, in context, sharpened", view=figures.steps_or_context,
        runs=("core+context", "small+small-context"), differs="two models of our own",
    ),
    "fig8": Artefact(
        title="Figure 8: uncertainty as a guide", view=compute.reliability, runs=("core",),
        differs="few prompts: points instead of a density; adaptive stops count to scored steps",
    ),
    "fig9": Artefact(
        title="Figure 9: λ' and diversity, σ_∞ and data, diminishing returns",
        view=ground.selection, ground=True,
    ),
    "fig10": Artefact(
        title="Figure 10: SIFT over NN by the share of the data space", view=figures.data_size,
        runs=("core", "third", "thirtieth"),
    ),
    "fig11": Artefact(
        title="Figure 11: normalised embeddings or not", view=figures.lengths,
        runs=("unit", "raw"), differs="hidden states of the model; at most 1,000 texts",
    ),
    "fig12": Artefact(
        title="Figure 12: gain against a set's share of the data", view=ground.boundary,
        runs=("core",), ground=True,
        differs="shares of the data space, not of the model's training text",
    ),
    "fig13": Artefact(
        title="Figure 13: steps in order of selection or reversed", runs=("core+order",),
        view=_steps({"nearest": "NN", "nearest(order=reversed)": "NN, reversed"},
                    ("nearest(order=reversed)", "nearest")),
    ),
    "fig14": Artefact(
        title="Figure 14: the last linear layer alone", runs=("core+modes",),
        view=_steps({"sift": "full", "sift(mode=head)": "head"}, ("sift(mode=head)", "sift")),
        differs="the head's rate was not tuned",
    ),
    "fig15": Artefact(
        title="Figure 15: LoRA", runs=("core+modes",),
        view=_steps({"sift": "full", "sift(mode=lora)": "LoRA"}, ("sift(mode=lora)", "sift")),
        differs="LoRA's rate was not tuned",
    ),
    "fig16-17": Artefact(
        title="Figures 16 and 17: over steps, by model", view=figures.larger_learns_faster,
        runs=("core+lambda", "small+small-lambda"), differs="two models of our own",
    ),
    "fig18": Artefact(
        title="Figure 18: candidates from which SIFT selects", runs=("core+candidates",),
        view=_steps({"sift(k=50)": "k=50", "sift(k=100)": "k=100", "sift": "k=200",
                     "sift(k=1000)": "k=1000"}, ("sift(k=1000)", "sift(k=50)")),
        differs="the paper's figure was not at hand",
    ),
    "fig21": Artefact(
        title="Figure 21: cosines of prompts and texts", view=ground.cosines, ground=True,
        differs="the data space's embedder, not RoBERTa; the paper found no negative cosines",
    ),
    "fig26": Artefact(
        title="Figure 26: steps and gain of stopping rules", view=compute.proportional,
        runs=("core",), differs="the paper's figure was not at hand: made as Section 6 tells of it",
    ),
    "plane": Artefact(
        title="HullFT's plane: quality against seconds", view=compute.plane,
        runs=("core+lambda+rivals",), differs="from arXiv 2605.30337; without its padding",
    ),
    "corpus": Artefact(
        title="Appendix I.1: the data space by set", view=ground.corpus, ground=True,
    ),
    "cost": Artefact(
        title="Appendix I.3: seconds of a prompt", view=compute.inference,
        runs=("core+context+rivals",), differs="CPU seconds of this machine, as busy as it was",
    ),
    "scaling": Artefact(
        title="Section 6: bits per byte against test-time compute", view=figures.scaling,
        runs=("core+lambda",), differs="an outlook of the paper, which has no figure of it",
    ),
    "insight7": Artefact(
        title="Insight 7: candidates of negative cosine", view=figures.negative,
        runs=("gradient",), differs="the paper has no experiment; at most 1,000 texts",
    ),
    "statements": Artefact(
        title="Propositions 2.1 and 3.3, Theorems 3.2 and 4.1", view=theory.statements, ground=True,
        differs="the paper proves them",
    ),
}  # fmt: skip


def named(name: str) -> list[str]:
    """The artefacts that `name` asks for: one, several with commas between, or `all`.

    Raises:
        ValueError: If there is none of such a name.
    """
    if name == "all":
        return list(CATALOGUE)
    names = name.split(",")
    for each in names:
        if each not in CATALOGUE:
            raise ValueError(f"artefact is {each!r}: expected all, {', '.join(CATALOGUE)}")
    return names
