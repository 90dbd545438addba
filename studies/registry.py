"""The registry: each artifact's title, the runs it needs, and its differences from the paper."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from studies import cost_figures, figures, retrieval_figures, tables, two_facts
from studies.artifact import Artifact
from studies.retrieval_figures import QuerySet
from studies.study import Study
from studies.theory import statements


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSpec:
    """How to compute a table or figure of the paper, or one that its text suggests."""

    title: str
    view: Callable[..., Artifact]
    """Function of the runs, followed by the query set if `queries` is true."""
    runs: tuple[str, ...] = ()
    """Names in `RUN_SPECS`; `+` joins several into one run."""
    queries: bool = False
    """Whether `view` takes the embedded prompts and the data space as its last argument."""
    differences: str = ""
    """Differences from the paper, in addition to models, data and leakage."""

    def compute(self, study: Study) -> Artifact:
        """Compute the artifact, after evaluating the runs that are missing from `study`.

        Raises:
            RunFolderError: If a run lacks a method or step that the artifact needs.
        """
        arguments: list[Any] = [study.run(names) for names in self.runs]
        if self.queries:
            arguments.append(QuerySet.embed(study.space, study.prompts, study.data.set_field))
        return self.view(*arguments)


def _curves(methods: dict[str, str], pair: tuple[str, str] | None = None) -> Any:
    return partial(figures.over_steps, methods=methods, pair=pair)


TWO_MODELS = "two models trained for this project"
NO_TABLE = "the paper's table was not available"
NO_FIGURE = "the paper's figure was not available"

REGISTRY = {
    "table1": ArtifactSpec(
        title="Table 1: bits per byte by set, main model",
        view=tables.by_set,
        runs=("core",),
    ),
    "table2": ArtifactSpec(
        title="Table 2: base models and the same models after test-time fine-tuning",
        view=tables.by_model,
        runs=("core", "small"),
        differences=(
            f"{TWO_MODELS} instead of a leaderboard; `Pile weights` uses estimated numbers of "
            "documents"
        ),
    ),
    "table3": ArtifactSpec(
        title="Table 3: effect of λ, η and ρ on diversity",
        view=retrieval_figures.diversity_trends,
        queries=True,
        differences="the paper states the directions; here they are measured",
    ),
    "table4": ArtifactSpec(
        title="Table 4: bits per byte by set, small model",
        view=tables.by_set,
        runs=("small",),
        differences="a smaller model than in Table 1 instead of a larger one",
    ),
    "table5": ArtifactSpec(
        title="Table 5: bits per byte by set, LoRA",
        view=tables.by_set,
        runs=("lora",),
        differences=(
            f"{NO_TABLE}; the main model instead of Phi-3, LoRA of rank 32 on all linear layers"
        ),
    ),
    "table6": ArtifactSpec(
        title="Table 6: in context or fine-tuned, main model",
        view=tables.context_or_training,
        runs=("core+context+paper-context",),
        differences=(
            "the context budget is exact and every window contains the documents; by default the "
            "first pick stands next to the prompt, and one column has the paper's order"
        ),
    ),
    "table7": ArtifactSpec(
        title="Table 7: in context or fine-tuned, small model",
        view=tables.context_or_training,
        runs=("small+small-context",),
        differences="as for Table 6",
    ),
    "table8": ArtifactSpec(
        title="Table 8: in context or fine-tuned with LoRA, small model",
        view=partial(tables.context_or_training, trained="sift(adapter=lora)"),
        runs=("small+small-context",),
        differences="as for Table 6; LoRA has rank 32 and an untuned learning rate",
    ),
    "table11": ArtifactSpec(
        title="Table 11: SIFT by λ' and set",
        view=tables.by_lambda,
        runs=("core+lambda",),
        differences=f"{NO_TABLE}; λ' covers its range, 1e-8 to 10",
    ),
    "table12": ArtifactSpec(
        title="Table 12: correlation of σ with bits per byte",
        view=tables.uncertainty_correlations,
        runs=("core",),
        differences=f"{NO_TABLE}; its coefficients are about 0.4 (σ) and 0.5 (σ̂)",
    ),
    "fig1": ArtifactSpec(
        title="Figure 1: SIFT, NN and NN-F over gradient steps",
        view=_curves(
            {"sift": "SIFT", "nearest": "NN", "nearest-repeated": "NN-F"}, ("sift", "nearest")
        ),
        runs=("core",),
    ),
    "fig3": ArtifactSpec(
        title="Figure 3: a prompt that asks for two facts",
        view=two_facts.two_facts,
        queries=True,
        differences="the three texts of the figure, in the embedding of the data space",
    ),
    "fig4": ArtifactSpec(
        title="Figure 4: overhead of SIFT's selection over NN's",
        view=retrieval_figures.selection_overhead,
        queries=True,
        differences="one process without servers, so a search takes milliseconds, not a second",
    ),
    "fig5": ArtifactSpec(
        title="Figure 5: by model, and by λ'",
        view=figures.by_model_and_lambda,
        runs=("core+lambda", "small+small-lambda"),
        differences=TWO_MODELS,
    ),
    "fig6": ArtifactSpec(
        title="Figure 6: by the number of distinct documents that SIFT selects",
        view=figures.by_distinct_documents,
        runs=("core",),
        differences="groups are split at a fifth and at half of the steps",
    ),
    "fig7": ArtifactSpec(
        title="Figure 7: base model, in context, fine-tuned",
        view=figures.base_context_or_training,
        runs=("core+context", "small+small-context"),
        differences=TWO_MODELS,
    ),
    "fig8": ArtifactSpec(
        title="Figure 8: uncertainty as a predictor of the error",
        view=cost_figures.uncertainty_reliability,
        runs=("core",),
        differences="with few prompts, points instead of a density; α is our choice",
    ),
    "fig9": ArtifactSpec(
        title="Figure 9: λ' and diversity, σ_∞ and data size, diminishing returns",
        view=retrieval_figures.selection_behavior,
        queries=True,
    ),
    "fig10": ArtifactSpec(
        title="Figure 10: SIFT over NN by the share of the data space",
        view=figures.by_data_share,
        runs=("core", "third", "thirtieth"),
    ),
    "fig11": ArtifactSpec(
        title="Figure 11: effect of normalizing the embeddings",
        view=figures.effect_of_normalization,
        runs=("unit", "unnormalized"),
        differences="hidden states of the model; at most 1,000 documents",
    ),
    "fig12": ArtifactSpec(
        title="Figure 12: gain against a set's share of the data",
        view=retrieval_figures.gain_by_share,
        runs=("core",),
        queries=True,
        differences="shares of the data space, not of the model's training data",
    ),
    "fig13": ArtifactSpec(
        title="Figure 13: steps in order of selection or reversed",
        view=_curves(
            {"nearest": "NN", "nearest(order=reversed)": "NN, reversed"},
            ("nearest(order=reversed)", "nearest"),
        ),
        runs=("core+order",),
    ),
    "fig14": ArtifactSpec(
        title="Figure 14: training only the last linear layer",
        view=_curves(
            {"sift": "full", "sift(adapter=head)": "head"}, ("sift(adapter=head)", "sift")
        ),
        runs=("core+adapters",),
        differences="the head's learning rate was not tuned",
    ),
    "fig15": ArtifactSpec(
        title="Figure 15: training with LoRA",
        view=_curves(
            {"sift": "full", "sift(adapter=lora)": "LoRA"}, ("sift(adapter=lora)", "sift")
        ),
        runs=("core+adapters",),
        differences="LoRA's learning rate was not tuned",
    ),
    "fig16-17": ArtifactSpec(
        title="Figures 16 and 17: over gradient steps, by model",
        view=figures.curves_by_model,
        runs=("core+lambda", "small+small-lambda"),
        differences=TWO_MODELS,
    ),
    "fig18": ArtifactSpec(
        title="Figure 18: number of candidates",
        view=_curves(
            {
                "sift(k=50)": "k=50",
                "sift(k=100)": "k=100",
                "sift": "k=200",
                "sift(k=1000)": "k=1000",
            },
            ("sift(k=1000)", "sift(k=50)"),
        ),
        runs=("core+candidates",),
        differences=NO_FIGURE,
    ),
    "fig21": ArtifactSpec(
        title="Figure 21: cosines between prompts and documents",
        view=retrieval_figures.cosine_histograms,
        queries=True,
        differences="the data space's embedder, not RoBERTa; the paper found no negative cosines",
    ),
    "fig26": ArtifactSpec(
        title="Figure 26: steps and gain of stopping rules",
        view=cost_figures.stopping_rules,
        runs=("core",),
        differences=f"{NO_FIGURE}; this one follows the text of Section 6",
    ),
    "plane": ArtifactSpec(
        title="HullFT's plane: quality against seconds",
        view=cost_figures.quality_against_seconds,
        runs=("core+lambda+rivals+streaming",),
        differences="from arXiv 2605.30337; without its padding",
    ),
    "corpus": ArtifactSpec(
        title="Appendix I.1: the data space by set",
        view=retrieval_figures.documents_by_set,
        queries=True,
    ),
    "cost": ArtifactSpec(
        title="Appendix I.3: seconds per prompt",
        view=cost_figures.seconds_by_phase,
        runs=("core+context+rivals+streaming",),
        differences="CPU seconds of this machine, which may have been busy",
    ),
    "scaling": ArtifactSpec(
        title="Section 6: bits per byte against test-time compute",
        view=figures.scaling_law,
        runs=("core+lambda",),
        differences="the paper gives an outlook and no figure",
    ),
    "insight7": ArtifactSpec(
        title="Insight 7: candidates of negative cosine",
        view=figures.negative_cosines,
        runs=("gradient",),
        differences="the paper has no experiment; at most 1,000 documents",
    ),
    "statements": ArtifactSpec(
        title="Propositions 2.1 and 3.3, Theorems 3.2 and 4.1",
        view=statements.formal_statements,
        queries=True,
        differences="the paper proves them",
    ),
}


def parse_names(names: str) -> list[str]:
    """Return the artifacts in `names`: one name, several separated by commas, or `all`.

    Raises:
        ValueError: If an artifact of that name does not exist.
    """
    if names == "all":
        return list(REGISTRY)
    parsed = names.split(",")
    for name in parsed:
        if name not in REGISTRY:
            raise ValueError(f"artifact is {name!r}: expected all, {', '.join(REGISTRY)}")
    return parsed
