"""Does a training set that SIFT selects for some documents of a set help on others of that set?

    python benchmarks/targeted.py SPACE valid.jsonl.gz --set enron --set pmc -n 60 --json
    benchmarks/results/targeted.json

In each set, the first --targets documents are the targets, and the next --held-out are scored as a
whole. The model is trained on each list in one pass with one step per document, then restored. The
lists of n documents are SIFT's, the targets' nearest documents in turn, and random ones from the
candidates and from the data space. A list is used in its order, or with --shuffle in a random one,
as trainers do. "repeated" is the share of a list's documents that have a cosine of 0.9 or more with
an earlier one.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from whet.adapt.model import LanguageModel
from whet.adapt.session import adapted
from whet.data.documents import read_documents
from whet.evaluate.provenance import provenance
from whet.io import progress_bar
from whet.maths.statistics import mean_estimate
from whet.space.space import DataSpace
from whet.space.training_set import training_set

PATH = click.Path(exists=True, path_type=Path)


@click.command(help=__doc__)
@click.argument("space", type=PATH)
@click.argument("prompts", type=PATH)
@click.option("--model", default="whet-nano", show_default=True)
@click.option("--lr", type=float, help="Learning rate [default: the model's].")
@click.option("--set", "sets", multiple=True, required=True, help="Value of meta.set; repeatable.")
@click.option("--targets", default=10, show_default=True)
@click.option("--held-out", default=10, show_default=True)
@click.option("-n", default=60, show_default=True, help="Gradient steps.")
@click.option("-k", default=200, show_default=True, help="Candidates per target.")
@click.option("--lam", "lams", multiple=True, default=[0.01, 0.1], show_default=True)
@click.option("--shuffle", is_flag=True, help="Train in a random order, equal for all lists.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--json", "out", type=click.Path(path_type=Path), help="Also write the numbers as JSON."
)
def main(
    space: Path, prompts: Path, model: str, lr: float | None, sets: tuple[str, ...], targets: int,
    held_out: int, n: int, k: int, lams: tuple[float, ...], shuffle: bool, seed: int,
    out: Path | None,
) -> None:  # fmt: skip
    data_space, language_model = DataSpace.open(space), LanguageModel.from_pretrained(model)
    adaptation = language_model.adapter_config("full", lr=lr)
    documents_of_all = list(read_documents(prompts))
    rows: list[dict[str, Any]] = []
    order = np.random.default_rng(seed).permutation(n) if shuffle else np.arange(n)
    with progress_bar("train", len(sets) * (3 + len(lams)) * n, show=True) as advance:
        for name in sets:
            texts = [d.text for d in documents_of_all if d.meta.get("set") == name]
            if len(texts) < targets + held_out:
                raise click.UsageError(f"set {name!r} has {len(texts)} documents: lower --held-out")
            scored = texts[targets : targets + held_out]
            base = [language_model.score(text).bits_per_byte for text in scored]
            for method, selected in lists(data_space, texts[:targets], n, k, lams, seed).items():
                start, documents = time.perf_counter(), data_space.documents(selected)
                with adapted(language_model, adaptation) as slot:
                    for i in order:
                        slot.step(documents[i].text)
                        advance(1)
                    after = [slot.score(text).bits_per_byte for text in scored]
                rows.append({
                    "set": name, "method": method, "base": base, "bits_per_byte": after,
                    "distinct": len({document.id for document in documents}),
                    "own_set": np.mean([d.meta.get("set") == name for d in documents]).item(),
                    "repeated": repeated(data_space.vectors(np.array(selected))),
                    "seconds": time.perf_counter() - start,
                })  # fmt: skip
    lines = summary(rows)
    show(lines)
    if out:
        options = {"targets": targets, "held_out": held_out, "n": n, "k": k}
        options |= {"shuffle": shuffle}
        options |= {"seed": seed, "model": Path(model).name, "lr": adaptation.lr}
        options |= {"space": len(data_space), "prompts": prompts.name}
        record = options | provenance() | {"lines": lines, "rows": rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")


def lists(
    space: DataSpace, targets: list[str], n: int, k: int, lams: tuple[float, ...], seed: int
) -> dict[str, list[int]]:
    """Return n rows of the data space by each method, in order of selection."""
    sets = {lam: training_set(space, targets, n, k=k, lam=lam) for lam in lams}
    candidates = sets[lams[0]].candidates
    rng = np.random.default_rng(seed)
    rows: dict[str, Any] = {
        "nearest": in_turn(space, targets, n),
        **{f"sift({lam:g})": m.candidates[m.selection.indices] for lam, m in sets.items()},
        "random candidates": rng.choice(candidates, n, replace=False),
        "random": rng.choice(len(space), n, replace=False),
    }
    return {method: [int(row) for row in selected] for method, selected in rows.items()}


def repeated(vectors: np.ndarray) -> float:
    """Return the share of unit vectors with a cosine of 0.9 or more with an earlier one."""
    near = np.tril(vectors.astype(np.float64) @ vectors.T, -1) >= 0.9
    return float(near.any(axis=1).mean())


def in_turn(space: DataSpace, targets: list[str], n: int) -> list[int]:
    """Return each target's nearest row, then each one's second nearest, …, without repetition."""
    results = space.search(space.embedder.encode(targets), min(n, len(space)), metric="cosine")
    ranked = [near.rows[np.argsort(-near.scores, kind="stable")] for near in results]
    distinct = dict.fromkeys(np.stack(ranked, axis=1).ravel().tolist())
    return list(distinct)[:n]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return percent of base by set and method, and the paired difference to nearest."""
    lines = []
    sets = list(dict.fromkeys(row["set"] for row in rows))
    for name in [*sets, "all"] if len(sets) > 1 else sets:
        shares = {}
        for method in dict.fromkeys(row["method"] for row in rows):
            selected = [r for r in rows if r["method"] == method and name in (r["set"], "all")]
            shares[method] = np.concatenate(
                [100 * np.array(r["bits_per_byte"]) / np.array(r["base"]) for r in selected]
            )
        for method, share in shares.items():
            mean, paired = mean_estimate(share), mean_estimate(share - shares["nearest"])
            line = {"set": name, "method": method, "n": len(share), "percent_of_base": mean.value}
            line |= {"half": mean.half, "minus_nearest": paired.value}
            lines.append(line | {"low": paired.low, "high": paired.high})
    return lines


def show(lines: list[dict[str, Any]]) -> None:
    table = Table(box=MARKDOWN)
    for heading in ("set", "method", "n", "% of base", "minus nearest"):
        table.add_column(heading, no_wrap=True)
    for line in lines:
        share = f"{line['percent_of_base']:.1f} ± {line['half']:.1f}"
        paired = f"{line['minus_nearest']:+.1f} [{line['low']:+.1f}, {line['high']:+.1f}]"
        table.add_row(line["set"], line["method"], str(line["n"]), share, paired)
    Console().print(table)


if __name__ == "__main__":
    main()
