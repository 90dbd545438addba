"""A run as one HTML page with its table, plots and the picks of every prompt; needs no network.

Template, style and script are in `assets/report`; the script draws the data that is embedded as
JSON. The size is limited: the numbers of every prompt are always included, about 1 kB each, but
picks and texts only for the first prompts, up to `MAX_DETAILS`.
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
from whet.evaluate.provenance import same_space, space_record
from whet.evaluate.report.render import caption, format_estimate, short
from whet.evaluate.report.table import Line, MethodSummary, Report, report
from whet.evaluate.results import PHASES, Run
from whet.maths.arrays import Array, normalize_rows
from whet.maths.statistics import Estimate, mean_estimate
from whet.space.space import DataSpace

MAX_DETAILS = (
    8_000_000  # characters of picks and texts; all of 1,300 prompts × 6 methods × 50 picks
)
EXCERPT = 280  # characters of a text
Picked = Mapping[str, Mapping[str, Mapping[int, list[str]]]]  # prompt, method, part


def page(run: Run, step: int | None = None, *, space: DataSpace | None = None) -> str:
    """The page of a run, with its table after `step` steps, by default after the last scored step.

    With the run's data space, the beginnings of the picked texts are included, and picks that are
    near-duplicates of each other (see `near_cosine`) are marked.

    Raises:
        RunFolderError: If `step` was not scored, or `space` is not the data space of the run.
    """
    if space is not None and not same_space(space_record(space), run.meta["space"]):
        raise RunFolderError(
            f"{space.path} is not the data space of {run.folder}, or has changed since: pass the "
            "run's data space, or leave it out"
        )
    results = report(run, step)
    lead = next((m for m in run.methods if m.startswith("sift")), run.methods[0])
    style, script = _asset("style.css"), _asset("charts.js") + _asset("page.js")
    contents = _contents(run, results, lead) | _Details(run, space).contents()
    return Template(_asset("page.html")).substitute(
        title=html.escape(run.folder.resolve().name),
        headline=html.escape(headline(results, lead)),
        facts=html.escape(_facts(run)),
        caption=html.escape(caption(results)),
        origin=html.escape(json.dumps(run.meta, indent=1, ensure_ascii=False)),
        data=_embedded(contents),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def headline(results: Report, method: str) -> str:
    """One sentence on `method`, with n and interval, and its difference to nearest if that ran."""
    line = _overall(results)
    percent = _text(line.methods[method], unit=" %")
    words = f"After {results.step} steps {short(method)} needs {percent} of the base model’s bits"
    if method in line.paired:
        difference = _text(line.paired[method], sign="+", unit=" points")
        words += f", a difference to NN of {difference}"
    return f"{words} (n = {results.n}, 90 % intervals)"


def _overall(results: Report) -> Line:
    lines = [
        line for line in results.lines if line.name == "all, by prompt"
    ]  # a set may have this name too
    return lines[-1] if lines else results.lines[0]


def _text(estimate: Estimate, sign: str = "", unit: str = "") -> str:
    text = format_estimate(estimate, sign=sign, unit=unit).replace("-", "−")
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _facts(run: Run) -> str:
    config = run.config
    counts = {"prompts": len(run), "failed": len(run.errors)}
    shown = [f"{count:,} {name}" for name, count in counts.items() if count or name == "prompts"]
    documents = f"{run.meta['space']['documents']:,} documents by {run.meta['space']['embedder']}"
    return " · ".join([*shown, config.model, f"leakage {config.leakage}", documents])


def _contents(run: Run, results: Report, lead: str) -> dict[str, Any]:
    """The data of the page that concern the run as a whole."""
    sets = set(run.column("set").tolist())
    methods = list(run.methods)
    return {
        "steps": run.steps,
        "step": results.step,
        "lead": methods.index(lead),
        "methods": [{"name": name, "short": short(name)} for name in methods],
        "phases": [phase.removesuffix("_s") for phase in PHASES],
        "curves": _curves(run),
        "table": [_line(line, line.name in sets) for line in results.lines],
        "pairs": [i for i, m in enumerate(methods) if m.startswith("sift") and m in
                  results.lines[0].paired],
        "delta": any(line.delta is not None for line in results.lines),
        "summary": [_summary(i, each) for i, each in enumerate(results.summary)],
    }  # fmt: skip


def _summary(index: int, each: MethodSummary) -> dict[str, Any]:
    """The averages of a method and of its difference to nearest, which is null for nearest."""
    centers = each.percent, each.minus_nearest
    averages = [
        [round(e.value, 3) for e in (c.mean, c.median, c.trimmed)] if c else [None] * 3
        for c in centers
    ]
    sets = f"{each.better_sets} : {each.worse_sets}" if each.minus_nearest else ""
    return {"method": index, "percent": averages[0], "difference": averages[1], "sets": sets}


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
    """% of base and its interval by method and step: for all prompts, and for each of several sets."""
    sets = run.column("set")
    names = sorted(set(sets.tolist()))
    parts = [("all prompts", np.ones(len(run), bool))] if len(names) > 1 else []
    parts += [(name, sets == name) for name in names]
    ratios = [[run.ratio(method, step) for step in run.steps] for method in run.methods]
    return [
        {
            "name": name,
            "n": int(mask.sum()),
            "values": [[_triple(mean_estimate(r[mask])) for r in rows] for rows in ratios],
        }
        for name, mask in parts
    ]


def _triple(estimate: Estimate) -> list[float]:
    return [round(x, 3) for x in (estimate.value, estimate.low, estimate.high)]


@dataclass(slots=True)
class _Details:
    """The prompts of a page, with their picks until `MAX_DETAILS` is reached."""

    run: Run
    space: DataSpace | None
    places: dict[str, int] = field(
        default_factory=dict
    )  # index of each document in the page's list
    texts: list[str | None] = field(default_factory=list)
    used: int = 0

    def contents(self) -> dict[str, Any]:
        """`prompts` in the order of the run, and the `documents` and `texts` that they refer to."""
        run, picked = self.run, picks(self.run)
        keys = ("id", "set", "bytes", "base", "near", "exact", "cosine", "overlap")
        columns = ("prompt", "set", "bytes", "base_bits", "near", "exact", "cosine", "overlap")
        lists = [run.prompts[name].to_pylist() for name in columns]
        bits = _cube([[run.bits(m, step) for step in run.steps] for m in run.methods], 1)
        seconds = _cube([[run.seconds(m, None, [p]) for p in PHASES] for m in run.methods], 4)
        tokens = _cube([run.tokens(m) for m in run.methods], 0)
        sigma = [run.trajectories(m).round(4).tolist() for m in run.methods]
        prompts = []
        for i, values in enumerate(zip(*lists, strict=True)):
            prompt = dict(zip(keys, values, strict=True))
            prompt |= {"bits": bits[i], "seconds": seconds[i], "tokens": tokens[i]}
            sigmas = [[None if np.isnan(s) else s for s in m[i]] for m in sigma]
            prompts.append(prompt | {"detail": self._detail(picked[prompt["id"]], sigmas)})
        texts = {} if self.space is None else {"texts": self.texts}
        return {"prompts": prompts, "documents": list(self.places), **texts}

    def _detail(
        self, picked: Mapping[str, Mapping[int, list[str]]], sigma: list[list[float | None]]
    ) -> dict[str, Any] | None:
        """Picks and σ of a prompt by method, documents by their index; None beyond `MAX_DETAILS`."""
        if self.used >= MAX_DETAILS:
            return None
        parts = [list(picked.get(method, {}).values()) for method in self.run.methods]
        names = list(dict.fromkeys(name for method in parts for part in method for name in part))
        at = {name: i for i, name in enumerate(names)}
        self._add([name for name in names if name not in self.places])
        detail: dict[str, Any] = {
            "documents": [self.places[name] for name in names],
            "picks": [[[at[name] for name in part] for part in method] for method in parts],
            "sigma": sigma,
        }
        if self.space is not None:
            rows = self.space.store.find(names)
            near = self.run.config.near_cosine
            groups = near_copies(self.space.vectors(rows[rows >= 0]), near)
            detail["near_copies"] = _spread(groups, rows >= 0)
        self.used += len(_compact(detail))
        return detail

    def _add(self, names: Sequence[str]) -> None:
        self.places |= {name: len(self.places) + i for i, name in enumerate(names)}
        texts: list[str | None] = [None] * len(names)
        if self.space is not None:
            rows = self.space.store.find(names)
            excerpts = [text[:EXCERPT] for text in self.space.texts(rows[rows >= 0])]
            texts = _spread(excerpts, rows >= 0)
            self.texts += texts
        self.used += len(_compact([names, texts]))


def picks(run: Run) -> Picked:
    """The documents that every method picked for every prompt, by part, in order."""
    documents: dict[str, dict[str, dict[int, list[str]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    columns = ("prompt", "method", "part", "document")
    for prompt, method, part, name in zip(
        *(run.table[column].to_pylist() for column in columns), strict=True
    ):
        if name is not None:
            documents[prompt][method][part].append(name)
    return documents


def near_copies(vectors: Float[Array, "n d"], near_cosine: float) -> list[int | None]:
    """The number of each vector's group of near-duplicates; None for a vector without one.

    Near-duplicates of near-duplicates are in the same group.
    """
    unit = normalize_rows(vectors)
    count, group = connected_components(unit @ unit.T >= near_cosine, directed=False)
    several = np.flatnonzero(np.bincount(group, minlength=count) > 1).tolist()
    return [several.index(g) if g in several else None for g in group.tolist()]


def _spread(values: Sequence[Any], known: Array) -> list[Any]:
    """`values` where `known` is true, None elsewhere (`dynamic` is not a document)."""
    remaining = iter(values)
    return [next(remaining) if flag else None for flag in known]


def _cube(values: list[Any], digits: int) -> list[Any]:
    """`values` with the last axis, the prompts, moved to the front, and rounded."""
    nested: list[Any] = np.moveaxis(np.round(np.array(values), digits), -1, 0).tolist()
    return nested


def _asset(name: str) -> str:
    return (files("whet") / "assets" / "report" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """Hash of a script or style for the page's content security policy, which allows no other."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _embedded(contents: dict[str, Any]) -> str:
    """JSON for a script element; `<` is escaped, so that no text can end the element."""
    return _compact(contents).replace("<", "\\u003c")


def _compact(contents: Any) -> str:
    return json.dumps(contents, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
