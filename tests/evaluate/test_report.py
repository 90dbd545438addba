"""The views of a run, each recomputed from its rows by an independent slow formula."""

import json
import threading
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from support import eval_fixtures, fake_runs

from whet.errors import RunFolderError
from whet.evaluate.config import EvalConfig
from whet.evaluate.provenance import provenance
from whet.evaluate.report.costs import costs
from whet.evaluate.report.render import caption, curves, markdown, table
from whet.evaluate.report.summary import by_protocol, comparison_table
from whet.evaluate.report.table import Center, Report, report
from whet.evaluate.report.uncertainty import (
    KINDS,
    adaptive_steps,
    calibration,
    correlation,
    correlations,
    stops,
)
from whet.evaluate.results import Run
from whet.evaluate.run_storage import append, pack
from whet.maths.statistics import bootstrap
from whet.select.selection import Selection

METHODS = ("uncertainty", "nearest", "nearest-repeated", "sift", "sift(stop_alpha=0.9)", "dynamic")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    here = eval_fixtures.build(folder / "world")
    lines = [json.loads(line) for line in (here / "prompts.jsonl").read_text().splitlines()]
    lines[0]["text"] = eval_fixtures.text(3)  # is in the data space
    prompts = eval_fixtures.write(folder / "prompts.jsonl", lines)
    return eval_fixtures.run(
        here, folder / "run", prompts=prompts, methods=METHODS, eval_steps=(1, 2, 3)
    )


def cells(run, method, step):
    """The rows of a method at a step, in the order of the prompts, as dictionaries."""
    rows = [r for r in run.table.to_pylist() if (r["method"], r["step"]) == (method, step)]
    return sorted(rows, key=lambda r: run.prompts["prompt"].to_pylist().index(r["prompt"]))


def test_views_are_sums_over_the_rows(run):
    for method in METHODS:
        for step in (0, 2, 4):
            rows = cells(run, method, step)
            assert run.bits(method, step).tolist() == [r["bits"] for r in rows]
            sigma = [np.nan if r["sigma"] is None else r["sigma"] for r in rows]
            np.testing.assert_array_equal(run.sigma(method, step), sigma)
            for i, name in enumerate(run.prompts["prompt"].to_pylist()):
                own = [r for r in run.table.to_pylist() if r["step"] <= step
                       and (r["prompt"], r["method"]) == (name, method)]  # fmt: skip
                assert run.tokens(method, step)[i] == sum(r["tokens"] for r in own)
                seconds = sum(
                    r[f"{p}_s"] for r in own for p in ("embed", "search", "select", "train")
                )
                assert run.seconds(method, step)[i] == pytest.approx(seconds)


def test_parts_of_a_prompt_are_added(tmp_path):
    here = eval_fixtures.build(tmp_path / "world")
    run = eval_fixtures.run(here, tmp_path / "run", leakage="score-first", chunks=3, per_set=1)
    for i, name in enumerate(run.prompts["prompt"].to_pylist()):
        own = [r for r in cells(run, "sift", 4) if r["prompt"] == name]
        assert len(own) == 3 and run.bits("sift")[i] == pytest.approx(sum(r["bits"] for r in own))
        assert run.column("bytes")[i] == sum(r["bytes"] for r in own)
        assert run.sigma("sift")[i] == pytest.approx(np.mean([r["sigma"] for r in own[1:]]))


def test_the_table_is_the_mean_of_the_ratios(run):
    made = {line.name: line for line in report(run).lines}
    assert list(made) == [
        "a", "b", "all, by prompt", "all, by set", "with a near-duplicate", "without",
    ]  # fmt: skip
    last = {method: cells(run, method, 4) for method in METHODS}
    percent = {m: [100 * r["bits"] / r["base_bits"] for r in rows] for m, rows in last.items()}
    line = made["all, by prompt"]
    for method in METHODS:
        assert line.methods[method].value == pytest.approx(np.mean(percent[method]))
    interval = stats.bootstrap(
        (np.array(percent["sift"]),), np.mean, confidence_level=0.9, n_resamples=9999,
        method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    spread = interval.high - interval.low
    assert line.methods["sift"].low == pytest.approx(interval.low, abs=0.1 * spread)
    assert line.methods["sift"].high == pytest.approx(interval.high, abs=0.1 * spread)
    difference = np.mean(np.array(percent["sift"]) - percent["nearest"])
    assert line.paired["sift"].value == pytest.approx(difference)
    rivals = ("uncertainty", "nearest", "nearest-repeated")
    best = min(np.mean(percent[method]) for method in rivals)
    assert line.delta == pytest.approx(np.mean(percent["sift"]) - best)
    assert (line.near, made["with a near-duplicate"].near, made["without"].near) == (1, 1, 0)
    assert line.base == pytest.approx(
        sum(r["base_bits"] for r in last["sift"]) / sum(r["bytes"] for r in last["sift"])
    )


def test_all_by_set_is_the_ratio_of_the_means_of_the_sets(run):
    line = next(line for line in report(run).lines if line.name == "all, by set")
    sets = run.prompts["set"].to_pylist()

    def share(method):
        per_set = {"bits": [], "base_bits": []}
        for name in "ab":
            own = [r for r, s in zip(cells(run, method, 4), sets, strict=True) if s == name]
            for column, values in per_set.items():
                values.append(sum(r[column] for r in own) / sum(r["bytes"] for r in own))
        return 100 * sum(per_set["bits"]) / sum(per_set["base_bits"])

    assert line.methods["sift"].value == pytest.approx(share("sift"))
    assert line.paired["sift"].value == pytest.approx(share("sift") - share("nearest"))


def test_methods_are_summarized_by_three_averages(run):
    made = {each.method: each for each in report(run, 4).summary}
    percent = run.ratio("sift", 4)
    difference = np.sort(percent - run.ratio("nearest", 4))
    center = made["sift"].minus_nearest
    assert center.mean.value == pytest.approx(difference.mean())
    assert center.median.value == pytest.approx((difference[2] + difference[3]) / 2)
    assert made["sift"].percent.median.value == pytest.approx(np.median(percent))
    assert made["nearest"].minus_nearest is None
    assert (made["sift"].better_sets, made["sift"].worse_sets) == (0, 0)  # sets of 3 prompts
    values = np.random.default_rng(0).permutation(20) ** 2.0
    trimmed = Center.of(values).trimmed
    assert trimmed.value == pytest.approx(np.sort(values)[2:-2].mean())
    slow = bootstrap(values, lambda rows: float(np.sort(rows)[2:-2].mean()))
    assert (trimmed.low, trimmed.high) == pytest.approx((slow.low, slow.high))


def test_few_prompts_have_no_best_method(tmp_path):
    made = report(fake_runs.run(tmp_path / "run", prompts=12))
    bold = {row.split("|")[1].strip(): row.count("**") for row in markdown(made).splitlines()[2:]}
    for line in made.lines:
        n = line.methods["sift"].n
        assert bold[line.name] == (2 if n >= 10 else 0)
    assert {line.methods["sift"].n < 10 for line in made.lines} == {True, False}
    assert all(
        each.better_sets == each.worse_sets == 0 for each in made.summary if each.minus_nearest
    )


PAPER = {"protocol": "paper", "long_texts": "chunks"}
HELD_OUT = {"protocol": "held-out", "long_texts": "chunks"}


def test_runs_of_both_protocols_share_a_table(tmp_path):
    here = eval_fixtures.build(tmp_path / "world")
    methods = ("nearest", "sift")
    paper = eval_fixtures.run(here, tmp_path / "a", methods=methods, **PAPER)
    other = eval_fixtures.run(here, tmp_path / "b", methods=("nearest",), **HELD_OUT)
    more = eval_fixtures.run(here, tmp_path / "c", methods=("mmr",), per_set=2, **HELD_OUT)
    runs = by_protocol([paper, other, more])
    assert list(runs) == ["paper", "held-out"] and runs["held-out"].methods == ("nearest", "mmr")
    names = runs["paper"].prompts["prompt"].to_pylist()
    assert names == runs["held-out"].prompts["prompt"].to_pylist() and len(names) == 4
    made = comparison_table({name: report(run).summary for name, run in runs.items()})
    cells = [list(column.cells) for column in made.columns]
    assert cells[0] == ["NN", "SIFT", "mmr"] and made.columns[4].header == "held-out, % of base"
    assert cells[4][1] == "" and cells[1][2] == ""
    assert cells[1][1].startswith(f"{np.mean(runs['paper'].ratio('sift')):.1f}")
    with pytest.raises(RunFolderError, match="only runs on the same data can be compared"):
        by_protocol([paper, replace(other, meta=other.meta | {"prompts": "sha256:0"})])


def test_sets_of_one_prompt_have_no_interval_to_show(tmp_path):
    run = eval_fixtures.run(eval_fixtures.build(tmp_path / "world"), tmp_path / "run", per_set=1)
    made = report(run)
    lines = {line.name: line.methods["sift"] for line in made.lines}
    assert not lines["a"].has_interval and not lines["all, by set"].has_interval
    assert lines["all, by prompt"].has_interval
    rows = {row.split("|")[1].strip(): row for row in markdown(made).splitlines() if "|" in row}
    assert "±" in rows["all, by prompt"] and "±" not in rows["all, by set"]


def test_another_step_is_another_table(run):
    assert report(run, 2).step == 2
    assert report(run, 0).lines[2].methods["sift"].value == 100
    with pytest.raises(
        RunFolderError, match=r"step 5 of .* was not scored: expected one of \[0, 1, 2"
    ):
        report(run, 5)
    with pytest.raises(RunFolderError, match="has no method 'mmr': expected uncertainty, nearest"):
        run.bits("mmr")


def test_leaks_are_found_and_dropped(run):
    prompts = {row["prompt"]: row for row in run.prompts.to_pylist()}
    assert prompts["p0"]["exact"] and prompts["p0"]["near"]
    assert prompts["p0"]["cosine"] == pytest.approx(1, abs=1e-3) and prompts["p0"]["overlap"] == 1
    assert not any(prompts[f"p{i}"]["exact"] for i in range(1, 6))
    assert run.without_contaminated().prompts["prompt"].to_pylist() == [
        f"p{i}" for i in range(1, 6)
    ]
    assert len(run.without_contaminated().table) == len(run.table) * 5 // 6
    with pytest.raises(RunFolderError, match="no prompt of .* is left"):
        run.filter(np.zeros(6, bool))


def slow_pearson(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5


def slow_kendall(x, y):
    pairs = list(combinations(zip(x, y, strict=True), 2))
    balance = sum(np.sign((a - c) * (b - d)) for (a, b), (c, d) in pairs)
    untied_x = sum(a != c for (a, _), (c, _) in pairs)
    untied_y = sum(b != d for (_, b), (_, d) in pairs)
    return balance / (untied_x * untied_y) ** 0.5


def ranks(x):
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


def test_correlations_are_those_of_slow_sums():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 25).astype(float)
    y = x + rng.integers(0, 5, 25)
    assert correlation(x, y, "Pearson").value == pytest.approx(slow_pearson(x, y))
    assert correlation(x, y, "Spearman").value == pytest.approx(slow_pearson(ranks(x), ranks(y)))
    assert correlation(x, y, "Kendall").value == pytest.approx(slow_kendall(x, y))
    assert correlation(x, np.ones(25), "Kendall").value == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_interval_of_a_correlation_is_that_of_resamples_one_by_one(kind):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, 12).astype(float)
    y = x + rng.integers(0, 4, 12)
    slow = {"Pearson": stats.pearsonr, "Spearman": stats.spearmanr, "Kendall": stats.kendalltau}

    def one(pairs):
        constant = not np.ptp(pairs, axis=0).all()
        return 0.0 if constant else float(slow[kind](*pairs.T).statistic)

    made, expected = correlation(x, y, kind), bootstrap(np.stack([x, y], axis=1), one)
    assert (made.low, made.high) == pytest.approx((expected.low, expected.high))


def test_correlations_pair_sigma_with_what_was_reached(run):
    made = {(c.predictor, c.target, c.kind): c.estimate for c in correlations(run, "sift", 3)}
    assert len(made) == 24
    rows, prompts = cells(run, "sift", 3), run.prompts.to_pylist()
    sigma = [r["sigma"] for r in rows]
    after = [r["bits"] / r["bytes"] for r in rows]
    gain = [r["base_bits"] / r["bits"] for r in rows]
    asked = [s * p["query_bits"] / p["query_bytes"] for s, p in zip(sigma, prompts, strict=True)]
    text = [s * r["base_bits"] / r["bytes"] for s, r in zip(sigma, rows, strict=True)]
    expected = {
        ("σ", "bits per byte"): (sigma, after), ("σ", "gain"): (sigma, gain),
        ("σ̂ of the text", "bits per byte"): (text, after),
        ("σ̂ of the prompt", "gain"): (asked, gain),
        ("base bits per byte", "bits per byte"): (
            [r["base_bits"] / r["bytes"] for r in rows], after,
        ),
    }  # fmt: skip
    for key, (x, y) in expected.items():
        assert made[(*key, "Pearson")].value == pytest.approx(slow_pearson(x, y))
        assert made[(*key, "Kendall")].value == pytest.approx(slow_kendall(x, y))


def test_calibration_is_a_line_through_bins_of_equal_size(run):
    made = calibration(run, "sift")
    assert [b.n for b in made.bins] == [1] * 6
    rows = cells(run, "sift", 4)
    x = np.array([r["sigma"] * r["base_bits"] / r["bytes"] for r in rows])
    y = np.array([r["bits"] / r["bytes"] for r in rows])
    line = stats.linregress(x, y)
    assert (made.slope, made.intercept) == pytest.approx((line.slope, line.intercept))
    assert made.error == pytest.approx(np.abs(line.slope * x + line.intercept - y).mean())


def test_regret_of_stopping_is_over_the_best_scored_step(run):
    made = {stop.rule: stop for stop in stops(run, "sift", alphas=[0.9])}
    percent = {s: run.ratio("sift", s) for s in run.steps}
    best = [min(percent[s][i] for s in run.steps) for i in range(len(run))]
    assert made["oracle"].percent.value == pytest.approx(np.mean(best))
    assert made["oracle"].regret.value == 0
    assert made["2 steps"].regret.value == pytest.approx(np.mean(percent[2] - best))
    exact = run.ratio("sift(stop_alpha=0.9)")  # every step is scored, so the view is exact
    assert made["α=0.9"].percent.value == pytest.approx(exact.mean())


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 2.0])
def test_adaptive_steps_are_those_of_a_selection(alpha):
    rng = np.random.default_rng(1)
    sigma = np.sort(rng.uniform(0, 1, (20, 9)))[:, ::-1]
    sigma[:, 0] = 1
    expected = [
        len(Selection(np.zeros(8, int), np.zeros(8), row**2).stop_at(alpha)) for row in sigma
    ]
    assert adaptive_steps(sigma, alpha).tolist() == expected


def test_costs_are_means_over_the_prompts(run):
    made = costs(run)
    (last,) = [point for point in made.of("sift") if point.step == 4]
    rows = [r for r in run.table.to_pylist() if r["method"] == "sift"]
    assert last.seconds["train"] == pytest.approx(sum(r["train_s"] for r in rows) / 6)
    assert last.tokens == sum(r["tokens"] for r in rows) / 6
    used = sum(
        r[f"{p}_s"] for r in run.table.to_pylist() for p in ("embed", "search", "select", "train")
    )
    scored = sum(r["score_s"] for r in run.table.to_pylist())
    assert made.measuring == pytest.approx(100 * scored / used) and made.peak_mib > 50


def test_pictures_and_tables_are_drawn(run, tmp_path):
    made = report(run)
    assert [c.header for c in table(made).columns][:5] == ["set", "n", "near", "base", "US"]
    assert "near-duplicate in the data space" in caption(made)
    assert "NN: nearest" in caption(made)
    assert Report.of(json.loads(json.dumps(made.record()))) == made
    for name in ("curves.png", "curves.svg"):
        curves(run, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_the_name_of_a_set_is_no_markup(run):
    made = report(run)
    lines = tuple(replace(line, name=f"[/{line.name}]") for line in made.lines)
    assert "| [/a] " in markdown(replace(made, lines=lines))
    lines = tuple(replace(line, name=f"{line.name}|x\ny") for line in made.lines)
    assert "| a\\|x y " in markdown(replace(made, lines=lines))


def test_tables_are_never_cut(run):
    line = report(run).lines[0]
    methods = {f"sift(lam={i}, alpha=0.25)": line.methods["sift"] for i in range(40)}
    wide = replace(report(run), lines=(replace(line, methods=methods),))
    assert "…" not in markdown(wide) and all(name[4:] in markdown(wide) for name in methods)


def test_sigma_of_parts_that_stop_apart_does_not_rise(tmp_path):
    run = eval_fixtures.run(
        eval_fixtures.build(tmp_path), tmp_path / "run", leakage="score-first", chunks=3,
        methods=("sift", "sift(stop_alpha=1.0)"), eval_steps=(4,), lam=0.1,
    )  # fmt: skip
    sigma = run.trajectories("sift(stop_alpha=1.0)")
    assert (np.diff(sigma, axis=1) <= 1e-12).all()
    parts = run.table.to_pandas().query("method == 'sift(stop_alpha=1.0)'")
    last = parts.dropna(subset="sigma").groupby(["prompt", "part"])["sigma"].min()
    wanted = last.groupby("prompt").mean()[run.prompts["prompt"].to_pylist()]
    np.testing.assert_allclose(sigma[:, -1], wanted)


def test_a_run_is_opened_while_it_is_packed(tmp_path):
    """The journal may be moved into the tables at any moment while they are read."""
    folder = fake_runs.run(tmp_path / "run", prompts=3).folder
    config = EvalConfig(methods=fake_runs.METHODS).with_settings(n=10)
    rng = np.random.default_rng(0)
    for i in range(20):
        append(folder, fake_runs.record(f"new {i}", "a", config, ["d"] * 200, rng))
        packer = threading.Thread(target=pack, args=(folder,))
        packer.start()
        assert len(Run.open(folder)) == 4 + i
        packer.join()


def test_a_commit_is_whets_own_or_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert provenance()["commit"] is None


def test_a_run_is_opened_as_it_was_kept(run):
    again = Run.open(run.folder)
    assert again.table.equals(run.table) and again.picks("p1", "nearest") == run.picks(
        "p1", "nearest"
    )
    assert len(again.picks("p1", "nearest")) == 4
