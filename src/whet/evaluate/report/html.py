"""A run as one page: its table, plots, and every prompt's picks, in a file that needs no network.

The look is in `assets/report`; the page draws what is embedded in it as JSON. Its size is bounded:
the numbers of every prompt are always there, about 1 kB each; the picks, and the texts that were
asked for, only of the first prompts that fit into `ROOM`.
"""

import base64
import hashlib
import html
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.sparse.csgraph import connected_components

from whet.errors import RunFolderError
from whet.evaluate.provenance import space_record
from whet.evaluate.report.render import caption, short
from whet.evaluate.report.table import Line, Report, report
from whet.evaluate.results import PHASES, Run
from whet.maths.arrays import Array, normalize_rows
from whet.maths.statistics import Estimate, mean_estimate
from whet.space.space import DataSpace

ROOM = 8_000_000  # characters of picks and texts: of 1,300 prompts, 6 methods, 50 picks, all picks
EXCERPT = 280  # characters of a text
Picked = Mapping[str, Mapping[str, Mapping[int, list[str]]]]  # prompt, method, part


def page(run: Run, step: int | None = None, *, space: DataSpace | None = None) -> str:
    """The page of a run, its table after `step` steps; after the last scored one if None.

    With the data space of the run, the picks come with the beginning of their texts, and those are
    marked that are near-duplicates of one another (`near_cosine` of the run).

    Raises:
        RunFolderError: If `step` was not scored, or `space` is not the run's.
    """
    if space is not None and space_record(space) != run.meta["space"]:
        raise RunFolderError(
            f"{space.path} is not the data space of {run.folder}, or was changed since: its texts "
            "are not those that were picked. Name the run's, or leave the texts out"
        )
    made = report(run, step)
    lead = next((m for m in run.methods if m.startswith("sift")), run.methods[0])
    style, script = _asset("style.css"), _asset("charts.js") + _asset("page.js")
    contents = _contents(run, made, lead) | _Details(run, space).contents()
    return Template(_asset("page.html")).substitute(
        title=html.escape(run.folder.resolve().name),
        headline=html.escape(headline(made, lead)),
        facts=html.escape(_facts(run)),
        caption=html.escape(caption(made)),
        origin=html.escape(json.dumps(run.meta, indent=1, ensure_ascii=False)),
        data=_embedded(contents),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def headline(made: Report, method: str) -> str:
    """What `method` reached, in one sentence with n and interval, and beside NN where that ran."""
    line = _overall(made)
    own = line.methods[method]
    words = f"After {made.step} steps {short(method)} needs {_told(own)} of the base model’s bits"
    if method in line.paired:
        words += f", {_told(line.paired[method], '+', 'points')} from NN"
    return f"{words} (n = {made.n}, 90 % intervals)"


def _overall(made: Report) -> Line:
    lines = [line for line in made.lines if line.name == "all, by prompt"]  # a set may be called so
    return lines[-1] if lines else made.lines[0]


def _told(estimate: Estimate, sign: str = "", unit: str = "%") -> str:
    value, low, high = (
        f"{x:{sign}.1f}".replace("-", "−") for x in (estimate.value, estimate.low, estimate.high)
    )
    told = f"{value} {unit} [{low}, {high}]" if estimate.has_interval else f"{value} {unit}"
    return told.replace(" ", "\N{NO-BREAK SPACE}")


def _facts(run: Run) -> str:
    config = run.config
    counts = {"prompts": len(run), "failed": len(run.errors)}
    told = [f"{count:,} {name}" for name, count in counts.items() if count or name == "prompts"]
    documents = f"{run.meta['space']['documents']:,} documents by {run.meta['space']['embedder']}"
    return " · ".join([*told, config.model, f"leakage {config.leakage}", documents])


def _contents(run: Run, made: Report, lead: str) -> dict[str, Any]:
    """What the page shows of the run as a whole."""
    sets = set(run.column("set").tolist())
    methods = list(run.methods)
    return {
        "steps": run.steps,
        "step": made.step,
        "lead": methods.index(lead),
        "methods": [{"name": name, "short": short(name)} for name in methods],
        "phases": [phase.removesuffix("_s") for phase in PHASES],
        "curves": _curves(run),
        "table": [_line(line, line.name in sets) for line in made.lines],
        "pairs": [i for i, m in enumerate(methods) if m.startswith("sift") and m in
                  made.lines[0].paired],
        "delta": any(line.delta is not None for line in made.lines),
    }  # fmt: skip


def _line(line: Line, is_set: bool) -> dict[str, Any]:
    return {
        "name": line.name,
        "set": is_set,
        "n": max(estimate.n for estimate in line.methods.values()),
        "near": line.near,
        "base": line.base,
        "methods": [_triple(estimate) for estimate in line.methods.values()],
        "paired": [_triple(line.paired[m]) if m in line.paired else None for m in line.methods],
        "delta": line.delta,
    }


def _curves(run: Run) -> list[dict[str, Any]]:
    """% of base and its interval by method and step: of all prompts, and of each set of several."""
    sets = run.column("set")
    names = sorted(set(sets.tolist()))
    parts = [("all prompts", np.ones(len(run), bool))] if len(names) > 1 else []
    parts += [(name, sets == name) for name in names]
    ratios = [[run.ratio(method, step) for step in run.steps] for method in run.methods]
    return [
        {
            "name": name,
            "n": int(mask.sum()),
            "values": [[_triple(mean_estimate(r[mask])) for r in own] for own in ratios],
        }
        for name, mask in parts
    ]


def _triple(estimate: Estimate) -> list[float]:
    return [round(x, 3) for x in (estimate.value, estimate.low, estimate.high)]


@dataclass(slots=True)
class _Details:
    """The prompts of a page, with their picks while there is room."""

    run: Run
    space: DataSpace | None
    places: dict[str, int] = field(default_factory=dict)  # of the documents in the page's list
    texts: list[str | None] = field(default_factory=list)
    used: int = 0

    def contents(self) -> dict[str, Any]:
        """`prompts` in the order of the run, and the `documents` and `texts` they point into."""
        run, picked = self.run, picks(self.run)
        told = ("id", "set", "bytes", "base", "near", "exact", "cosine", "overlap")
        columns = ("prompt", "set", "bytes", "base_bits", "near", "exact", "cosine", "overlap")
        lists = [run.prompts[name].to_pylist() for name in columns]
        bits = _cube([[run.bits(m, step) for step in run.steps] for m in run.methods], 1)
        seconds = _cube([[run.seconds(m, None, [p]) for p in PHASES] for m in run.methods], 4)
        tokens = _cube([run.tokens(m) for m in run.methods], 0)
        sigma = [run.trajectories(m).round(4).tolist() for m in run.methods]
        prompts = []
        for i, values in enumerate(zip(*lists, strict=True)):
            prompt = dict(zip(told, values, strict=True))
            prompt |= {"bits": bits[i], "seconds": seconds[i], "tokens": tokens[i]}
            own = [[None if np.isnan(s) else s for s in m[i]] for m in sigma]
            prompts.append(prompt | {"detail": self._detail(picked[prompt["id"]], own)})
        texts = {} if self.space is None else {"texts": self.texts}
        return {"prompts": prompts, "documents": list(self.places), **texts}

    def _detail(
        self, picked: Mapping[str, Mapping[int, list[str]]], sigma: list[list[float | None]]
    ) -> dict[str, Any] | None:
        """Picks and σ of a prompt by method, while there is room; a text by its place."""
        if self.used >= ROOM:
            return None
        parts = [list(picked.get(method, {}).values()) for method in self.run.methods]
        names = list(dict.fromkeys(name for own in parts for part in own for name in part))
        at = {name: i for i, name in enumerate(names)}
        self._add([name for name in names if name not in self.places])
        detail: dict[str, Any] = {
            "documents": [self.places[name] for name in names],
            "picks": [[[at[name] for name in part] for part in own] for own in parts],
            "sigma": sigma,
        }
        if self.space is not None:
            rows = self.space.store.find(names)
            near = self.run.config.near_cosine
            groups = twins(self.space.vectors(rows[rows >= 0]), near)
            detail["twins"] = _spread(groups, rows >= 0)
        self.used += len(_compact(detail))
        return detail

    def _add(self, names: Sequence[str]) -> None:
        self.places |= {name: len(self.places) + i for i, name in enumerate(names)}
        texts: list[str | None] = [None] * len(names)
        if self.space is not None:
            rows = self.space.store.find(names)
            begun = [text[:EXCERPT] for text in self.space.texts(rows[rows >= 0])]
            texts = _spread(begun, rows >= 0)
            self.texts += texts
        self.used += len(_compact([names, texts]))


def picks(run: Run) -> Picked:
    """The documents picked for every prompt by every method, part by part, in order."""
    found: dict[str, dict[str, dict[int, list[str]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    columns = ("prompt", "method", "part", "document")
    for prompt, method, part, name in zip(
        *(run.table[column].to_pylist() for column in columns), strict=True
    ):
        if name is not None:
            found[prompt][method][part].append(name)
    return found


def twins(vectors: Float[Array, "n d"], near_cosine: float) -> list[int | None]:
    """The group of near-duplicates that each vector is in, by number; None for one of its kind.

    Near-duplicates of near-duplicates are in one group.
    """
    unit = normalize_rows(vectors)
    count, group = connected_components(unit @ unit.T >= near_cosine, directed=False)
    several = np.flatnonzero(np.bincount(group, minlength=count) > 1).tolist()
    return [several.index(g) if g in several else None for g in group.tolist()]


def _spread(values: Sequence[Any], known: Array) -> list[Any]:
    """`values` at the places that are `known`, None at the others (`dynamic` is no document)."""
    left = iter(values)
    return [next(left) if there else None for there in known]


def _cube(values: list[Any], digits: int) -> list[Any]:
    """Nested by prompt first instead of last, and rounded."""
    nested: list[Any] = np.moveaxis(np.round(np.array(values), digits), -1, 0).tolist()
    return nested


def _asset(name: str) -> str:
    return (files("whet") / "assets" / "report" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """What the page's policy knows its own script and style by; nothing else runs in it."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _embedded(contents: dict[str, Any]) -> str:
    """JSON that no text in it can end: `<` is escaped."""
    return _compact(contents).replace("<", "\\u003c")


def _compact(contents: Any) -> str:
    return json.dumps(contents, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
