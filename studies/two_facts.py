"""Figure 3: the example of a prompt that asks for two facts, of which NN finds one.

Source: SIFT, arXiv 2410.08020, Section 2.1.
"""

from functools import partial
from typing import Any

import numpy as np

from studies import plotting
from studies.artifact import Artifact, Rows
from studies.retrieval_figures import QuerySet
from whet.errors import SourceError
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate
from whet.select.selectors.baselines import nearest
from whet.select.sift import sift

TWO_FACTS = "What is the age of Michael Jordan and how many kids does he have?"
FACTS = (
    "The age of Michael Jordan is 61 years.",
    "Michael Jordan was born on February 17, 1963.",
    "Michael Jordan has five children.",
)


def two_facts(queries: QuerySet) -> Artifact:
    """Figure 3: of three texts, NN picks the two about age, SIFT one about age and the other fact.

    Raises:
        SourceError: If the embedder finds nothing in the prompt that it knows.
    """
    vectors = queries.space.embedder.encode([TWO_FACTS, *FACTS]).astype(np.float64)
    query, facts = vectors[0], vectors[1:]
    if not query.any():
        raise SourceError("the prompt of Figure 3 has no term in common with the data space")
    picks = {"NN": nearest(query, facts, 2).indices, "SIFT": sift(query, facts, 2).indices}
    covered = [{"age" if i < 2 else "children" for i in chosen} for chosen in picks.values()]
    cosines = facts @ query / (np.linalg.norm(facts, axis=1) * np.linalg.norm(query) + 1e-300)
    rows: Rows = [
        (text, float(cosine), *(_position(chosen, i) for chosen in picks.values()))
        for i, (text, cosine) in enumerate(zip(FACTS, cosines, strict=True))
    ]
    return Artifact(
        columns=(TWO_FACTS, "cosine", *(f"{name} picks it as" for name in picks)),
        rows=tuple(rows),
        n=1,
        draw=partial(_two_facts, cosines=cosines),
        numbers={
            f"facts covered by {name}": Estimate(len(facts_of), len(facts_of), len(facts_of), 1)
            for name, facts_of in zip(picks, covered, strict=True)
        },
        note=f"Embedder: {queries.space.embedder.name}.",
    )


def _position(chosen: Array, index: int) -> str:
    places = [str(place) for place, pick in enumerate(chosen, start=1) if pick == index]
    return ", ".join(places) or "–"


def _two_facts(axes: Any, cosines: Array) -> None:
    axes.barh(FACTS, cosines, color=plotting.BLUE, height=0.5)
    axes.invert_yaxis()
    axes.set_xlabel("cosine to the prompt")
