"""The runs of a study: for each name, the methods it compares and the data it uses.

An artifact names the runs that it shows. `core+lambda` joins two runs of the same prompts. A run is
evaluated once, however many artifacts show it.
"""

from dataclasses import dataclass
from typing import Literal

CORE = ("uncertainty", "nearest", "nearest-repeated", "sift")
LAMBDAS = ("sift(1e-08)", "sift(0.0001)", "sift(0.1)", "sift(1)", "sift(10)")
FEW_LAMBDAS = ("sift(0.0001)", "sift(0.1)", "sift(10)")
CONTEXT = "sift(use=context, context_order=selected)"  # in the paper's order
NEAREST_PRODUCT = "nearest-product"  # with all documents as candidates: cosines choose none
BY_SHARE = ("nearest", "nearest-repeated", "sift")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What distinguishes a run of a study from the other runs."""

    methods: tuple[str, ...]
    model: Literal["main", "small"] = "main"
    """Whether the run uses the study's main model or its small one."""
    adapter: str = ""
    """What is trained, for all methods; empty for the study's own setting."""
    share: float = 1.0
    """Share of the data space's documents, selected by a hash of their ids. A smaller share is a
    subset of a larger one."""
    embedder: str = ""
    """Embedder of a data space built for this run, of at most `MAX_EMBEDDED` documents; empty for
    the study's own data space."""


GRADIENTS = "influence:whet-nano"
HIDDEN_STATES = "hf:whet-nano"  # of varying lengths; those of a sentence encoder are often 1
MAX_EMBEDDED = 1_000  # documents that a language model embeds in two minutes on two cores

RUN_SPECS = {
    "core": RunSpec(methods=CORE),
    "lambda": RunSpec(methods=LAMBDAS),
    "context": RunSpec(methods=("sift(use=context)", "sift(use=both)")),
    "paper-context": RunSpec(methods=(CONTEXT,)),
    "rivals": RunSpec(methods=("random", "mmr", "hull", "hull(gradient_reuse=2)", "dynamic")),
    "streaming": RunSpec(methods=("streaming",)),
    "lora": RunSpec(methods=CORE, adapter="lora"),
    "order": RunSpec(methods=("nearest(order=reversed)",)),
    "adapters": RunSpec(methods=("sift(adapter=lora)", "sift(adapter=head)")),
    "candidates": RunSpec(methods=("sift(k=50)", "sift(k=100)", "sift(k=1000)")),
    "third": RunSpec(methods=BY_SHARE, share=0.33),
    "thirtieth": RunSpec(methods=BY_SHARE, share=0.03),
    "gradient": RunSpec(methods=("nearest", "sift", "sift(metric=cosine)"), embedder=GRADIENTS),
    "unit": RunSpec(methods=("nearest", "sift"), embedder=HIDDEN_STATES),
    "unnormalized": RunSpec(
        methods=(NEAREST_PRODUCT, "sift"), embedder=f"{HIDDEN_STATES}@normalize=false"
    ),
    "small": RunSpec(methods=CORE, model="small"),
    "small-lambda": RunSpec(methods=FEW_LAMBDAS, model="small"),
    "small-context": RunSpec(methods=("sift(use=context)", "sift(adapter=lora)"), model="small"),
}
