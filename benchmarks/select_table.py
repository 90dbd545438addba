"""The table of `select_latency.py`; every number comes from the results file."""

from pathlib import Path
from typing import Any

TARGETS = {
    ("k=200", "activeft loader"): "50× / 100×",
    ("k=200", "activeft core"): "25× / 50×",
    ("k=1000", "activeft loader"): "80× / 200×",
    ("k=1000", "activeft core"): "80× / 200×",
}


def render(results: dict[str, Any]) -> str:
    """Return a Markdown table: case, median (min–max), minimum and stretch target."""
    rows = [line for name, draw in ROWS.items() if name in results for line in draw(results[name])]
    m = results["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in m["versions"].items())
    head = (
        f"{m['cpu']}, {m['cores']} cores, Python {m['python']}, {versions}; commit {m['commit']}. "
        "One thread by default; median (min–max).\n\n"
        "| case | result | target: minimum / stretch |\n|---|---|---|\n"
    )
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def insert(table: str, readme: Path) -> None:
    """Write the table between its markers in the README."""
    start, end = "<!-- select_latency -->\n", "<!-- end -->"
    before, rest = readme.read_text().split(start)
    readme.write_text(before + start + table + "\n" + end + rest.split(end, 1)[1])


def span(values: list[float], unit: str = "") -> str:
    middle, low, high = (f"{x:.3g}" for x in values)
    return f"{middle}{unit} ({low}–{high})"


def _peer(k: int) -> Any:
    def draw(r: dict[str, Any]) -> list[tuple[str, str, str]]:
        over = "≤ 3× / ≤ 1.5×" if k == 1000 else "–"
        return [
            (f"k={k}, n=50, d=1024: whet", span(r["ms"]["whet"], " ms"), "–"),
            *(
                (
                    f"k={k}: {name} ÷ whet",
                    f"**{span(r['ratio'][name], '×')}** = {span(r['ms'][name], ' ms')}",
                    TARGETS.get((f"k={k}", name), "–"),
                )
                for name in ("activeft loader", "activeft core", "plain NumPy")
            ),
            (f"k={k}: whet ÷ lower bound (u={r['u']})", f"**{r['over_floor']:.2f}×**", over),
        ]

    return draw


def _large(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    few = r["at few picks"]
    return [
        ("k=10,000, n=50: whet", span(r["ms"]["whet"], " ms"), "–"),
        (
            f"k=10,000, n={few['n']}, measured: activeft core ÷ whet",
            f"**{few['ratio']['activeft core'][0]:.0f}×**",
            "–",
        ),
        (
            f"k=10,000, n=50: activeft core (extrapolated from n=1 and {few['n']}: "
            f"{r['activeft core, extrapolated ms'] / 1e3:.0f} s) ÷ whet",
            f"**{r['extrapolated ratio']:.0f}×**",
            "600× / 1500×",
        ),
        (f"k=10,000: whet ÷ lower bound (u={r['u']})", f"**{r['over_floor']:.2f}×**", "–"),
    ]


def _batch(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    faster = [1 / x for x in r["ratio"]["two threads"]]
    control = [1 / x for x in r["control"]]
    return [
        ("64 prompts, k=200", span(r["ms"]["one thread"], " ms"), "–"),
        ("64 prompts ÷ their lower bounds", f"**{r['over_floor']:.2f}×**", "≤ 2.5× / ≤ 1.5×"),
        (
            "64 prompts: two threads over one",
            f"**{span([faster[0], faster[2], faster[1]], '×')}**",
            "1.7× / 1.9×",
        ),
        (
            "… the same for hashing, measured at the same time",
            span([control[0], control[2], control[1]], "×"),
            "–",
        ),
    ]


def _retrieval(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    share = span([100 * x for x in r["share"]], " %")
    case = f"selection's share of a retrieval (Faiss flat, {r['size']:,} × 1024, vectors, k=1000)"
    return [(case, f"**{share}**", "≤ 6 % / ≤ 4 %")]


def _mapped(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    case = f"k={r['k']:,}, d={r['d']}, float16 memory-mapped, n=50"
    return [
        (f"{case}, two threads", span(r["ms"]["whet"], " ms"), "–"),
        (f"{case}, one thread", span(r["ms"]["whet, one thread"], " ms"), "–"),
        ("… reading the rows once", span(r["ms"]["read once"], " ms"), "–"),
        (
            f"… over one reading per distinct pick (u={r['u']}), two threads, one",
            "**" + ", ".join(f"{x:.2f}×" for x in r["over_reading"]) + "**",
            "≤ 2×",
        ),
        ("… peak memory, file included", f"{r['peak_gib']:.2f} GiB", "≤ 4 GB"),
    ]


def _lazy(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    where = f"LSA of the corpus, k=200, n={r['prompts']} prompts"
    return [
        (
            f"`sift_lazy` differs from exact ({where})",
            f"{r['differs']} of {r['prompts']}; σ² higher by "
            f"{span([100 * x for x in r['excess']], ' %')}",
            "–",
        ),
        *(
            (
                f"gains that a pick raises, against Assumption C.1 (same, 50 picks, λ' = {lam})",
                span([100 * x for x in shares], " %"),
                "–",
            )
            for lam, shares in r["rising"].items()
        ),
    ]


def _corpus(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (
            f"corpus's LSA, d=256, {k}: activeft core ÷ whet",
            f"**{span(v['ratio']['activeft core'], '×')}**, whet {span(v['ms']['whet'], ' ms')}",
            "–",
        )
        for k, v in r.items()
    ]


def _cold(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (
            "first selection of a process: compiling, from the cache",
            f"{r['compiled']:.1f} s, {r['from cache']:.2f} s",
            "–",
        )
    ]


ROWS = {
    "k=200": _peer(200),
    "k=1000": _peer(1000),
    "k=10000": _large,
    "64 prompts": _batch,
    "retrieval": _retrieval,
    "mapped": _mapped,
    "mapped, ten million": _mapped,
    "corpus": _corpus,
    "lazy": _lazy,
    "cold": _cold,
}
