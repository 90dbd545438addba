"""The runs of a study by name: which switches they are of, and on which part of the data.

An artefact names the runs that it is a view of, joined by `+` where their methods stand beside each
other: `core+lambda`. A run is made once, whatever asks for it.
"""

from dataclasses import dataclass

CORE = ("uncertainty", "nearest", "nearest-repeated", "sift")
LAMBDAS = ("sift(1e-08)", "sift(0.0001)", "sift(0.1)", "sift(1)", "sift(10)")
COARSE = ("sift(0.0001)", "sift(0.1)", "sift(10)")
FEW = ("nearest", "nearest-repeated", "sift")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What sets a run of a study apart from the others."""

    methods: tuple[str, ...]
    model: str = "main"
    """The main model, or the small one."""
    share: float = 1.0
    """Of the data space's documents, drawn by a hash of their ids: a smaller share is part of a
    larger one."""
    embedder: str = ""
    """Another embedder than the data space's; its documents are at most `EMBEDDED`."""


GRADIENT = "influence:whet-nano"
HIDDEN = "hf:whet-nano"  # hidden states, whose lengths differ; a sentence encoder's are often 1
EMBEDDED = 1_000  # documents that a language model embeds in two minutes on two cores

PLANS = {
    "core": Plan(methods=CORE),
    "lambda": Plan(methods=LAMBDAS),
    "context": Plan(methods=("sift(use=context)", "sift(use=both)")),
    "rivals": Plan(methods=("random", "mmr", "hull", "hull(reuse=2)", "dynamic")),
    "order": Plan(methods=("nearest(order=reversed)",)),
    "modes": Plan(methods=("sift(mode=lora)", "sift(mode=head)")),
    "candidates": Plan(methods=("sift(k=50)", "sift(k=100)", "sift(k=1000)")),
    "third": Plan(methods=FEW, share=0.33),
    "thirtieth": Plan(methods=FEW, share=0.03),
    "gradient": Plan(methods=("nearest", "sift", "sift(sign=positive)"), embedder=GRADIENT),
    "unit": Plan(methods=("nearest", "sift"), embedder=HIDDEN),
    "raw": Plan(methods=("nearest", "sift"), embedder=f"{HIDDEN}@normalize=false"),
    "small": Plan(methods=CORE, model="small"),
    "small-lambda": Plan(methods=COARSE, model="small"),
    "small-context": Plan(methods=("sift(use=context)", "sift(mode=lora)"), model="small"),
}
