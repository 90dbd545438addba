"""Every artifact: its view on a made-up study, each statistic by an independent slow formula."""

import json
import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from support import studies
from support.hashing_embedder import HashingEmbedder

from whet.data.documents import Document
from whet.errors import RunFolderError, SourceError
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import Prompt, Prompts
from studies import cost_figures, figures, retrieval_figures, tables
from studies.registry import REGISTRY, parse_names
from studies.claims import CLAIMS
from studies.build import caption_of
from studies.metrics import LAMBDAS, lambda_of
from studies.artifact import number, format_cell
from whet.evaluate.results import align_runs, join
from studies.plotting import spread
from whet.maths.statistics import Estimate
from whet.space.space import DataSpace

NEEDS_MORE = {"SIFT − NN where few", "share with % of base"}  # other picks; a third set


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return studies.every(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return studies.ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def shown_of(runs, base):
    """What an artifact shows, made once."""

    @cache
    def show(name):
        artifact = REGISTRY[name]
        given = [joined(runs, spec) for spec in artifact.runs] + [base] * artifact.ground
        return artifact.view(*given)

    return show


def joined(runs, spec):
    return join([runs[name] for name in spec.split("+")])


def mean(name, method, other=None, prompts=range(9), step=4):
    """Mean % of base, or the mean difference to another method, straight from what was made up."""
    values = [studies.draw(name, method, i, step) for i in prompts]
    less = [studies.draw(*other, i, step) for i in prompts] if other else [0.0] * len(values)
    return math.fsum(a - b for a, b in zip(values, less, strict=True)) / len(values)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_artefact_is_a_table_two_pictures_and_a_record(shown_of, name, tmp_path):
    artifact, shown = REGISTRY[name], shown_of(name)
    assert shown.rows and all(len(row) == len(shown.columns) for row in shown.rows)
    assert all(e.low <= e.value <= e.high and e.n > 0 for e in shown.numbers.values())
    claimed = {claim.number for claim in CLAIMS if claim.artifact == name}
    assert claimed - NEEDS_MORE <= shown.numbers.keys()
    record, png, svg = shown.write(tmp_path, name, {"name": name})
    kept = json.loads(record.read_text())
    assert kept["columns"] == list(shown.columns) and kept["numbers"].keys() == shown.numbers.keys()
    assert png.read_bytes()[:4] == b"\x89PNG" and "<svg" in svg.read_text()
    assert f"n = {shown.n:,}" in caption_of(artifact, shown, EvalConfig())
    assert shown.table(artifact.title).row_count == len(shown.rows)


@pytest.mark.parametrize("name", [n for n, a in REGISTRY.items() if a.runs])
def test_a_view_refuses_a_run_without_its_methods(runs, base, name, tmp_path):
    artifact = REGISTRY[name]
    other = studies.run(tmp_path, "other", methods=("kmeanspp",))
    given = [other for _ in artifact.runs] + [base] * artifact.ground
    with pytest.raises(RunFolderError, match=r"other has no method '.*': expected kmeanspp$"):
        artifact.view(*given)


def test_the_same_picture_is_the_same_file(runs, tmp_path):
    shown = tables.by_set(runs["core"])
    once, twice = (shown.write(tmp_path / x, "t", {}) for x in "ab")
    assert [p.read_bytes() for p in once] == [p.read_bytes() for p in twice]


def test_sets_go_by_the_field_that_names_them(tmp_path):
    documents = [Document(f"d{i}", f"w{i} alpha beta", {"kind": "ab"[i % 2]}) for i in range(20)]
    space = DataSpace.build(documents, tmp_path / "space", HashingEmbedder(24))
    prompts = tuple(Prompt(Document(f"p{i}", text, {}), "a") for i, text in
                    enumerate(["alpha beta", "x"]))  # fmt: skip
    base = ground.QuerySet.of(space, Prompts("", prompts), "meta.kind")  # "x" has no two halves
    assert len(base.queries) == 1 and {row[0] for row in ground.corpus(base).rows} == {"a", "b"}
    with pytest.raises(SourceError, match="no prompt shares a term"):
        ground.QuerySet.of(space, Prompts("", prompts[1:] * 2), "set")


def test_table1_pairs_sift_with_nn(runs):
    shown = tables.by_set(runs["core"])
    assert shown.numbers["SIFT"].value == pytest.approx(mean("core", "sift"))
    wanted = mean("core", "sift", ("core", "nearest"))
    assert shown.numbers["SIFT − NN"].value == pytest.approx(wanted)
    arxiv = next(row for row in shown.rows if row[0] == "arxiv")
    own = [mean("core", m, prompts=(1, 4, 7)) for m in figures.CORE]
    assert [cell.value for cell in arxiv[3:7]] == pytest.approx(own)
    assert arxiv[7] == pytest.approx(own[3] - min(own[:3]))


def test_table2_weights_sets_equally(runs):
    shown = tables.absolute(runs["core"], runs["small"])
    sharpened = [
        np.mean([studies.draw("small", "sift", i, 4) for i in range(s, 9, 3)]) for s in range(3)
    ]
    wanted = np.mean(sharpened) / 100 * studies.BASE / studies.BYTES
    cells = {row[0]: row[1].value for row in shown.rows}
    assert cells["small-model + SIFT"] == pytest.approx(wanted)
    assert cells["main-model"] == pytest.approx(2.0)
    assert shown.numbers["small + SIFT − main base"].value == pytest.approx(wanted - 2.0)
    without = next(row for row in shown.rows if row[0] == "small-model + SIFT")[2]
    assert without.value == pytest.approx(np.mean(sharpened[:2]) / 50)
    assert without.n == 6


def test_table6_is_paired_and_tells_the_hard_sets(runs):
    shown = tables.in_context(joined(runs, "core+context"))
    pair = ("core", "sift", ("context", "sift(use=context)"))
    assert shown.numbers["steps − in context"].value == pytest.approx(mean(*pair))
    hard = mean(*pair, prompts=(0, 1, 3, 4, 6, 7))  # github and arxiv
    assert shown.numbers["steps − in context, hard sets"].value == pytest.approx(hard)


def test_table11_names_the_worst_noise(runs):
    shown = tables.noises(joined(runs, "core+lambda"))
    gaps = {
        m: mean("core" if m == "sift" else "lambda", m, ("core", "nearest")) for m in LAMBDAS
    }  # fmt: skip
    worst = max(gaps, key=gaps.get)
    assert shown.numbers["worst λ' − NN"].value == pytest.approx(gaps[worst])
    assert shown.numbers["best λ' − NN"].value == pytest.approx(min(gaps.values()))
    assert f"{lambda_of(worst):g}" in shown.note
    assert [lambda_of(m) for m in LAMBDAS] == [1e-8, 1e-4, 0.01, 0.1, 1, 10]


def test_table12_is_scipys_correlation(shown_of):
    shown = shown_of("table12")
    sigma = [(1 + i) ** (-4 / 20) for i in range(9)]
    after = [studies.draw("core", "sift", i, 4) for i in range(9)]
    wanted = stats.pearsonr(sigma, after).statistic
    assert shown.numbers["σ with bits per byte"].value == pytest.approx(wanted)
    gain = stats.spearmanr(sigma, [1 / a for a in after]).statistic
    assert shown.numbers["σ with gain"].value == pytest.approx(gain)


def test_fig6_groups_by_different_picks(tmp_path):
    def picks(method, prompt, step):
        return "d0" if prompt < 4 else f"d{step}"

    run = studies.run(tmp_path, "core", methods=figures.CORE, picks=picks)
    shown = figures.unique_points(run)
    assert [row[1] for row in shown.rows] == [9, 5]  # one of four is more than a fifth of them
    assert shown.numbers["different texts"].value == pytest.approx((4 * 1 + 5 * 4) / 9)
    gap = mean("core", "sift", ("core", "nearest-repeated"), prompts=range(4, 9))
    assert shown.numbers["SIFT − NN-F where many"].value == pytest.approx(gap)
    share = 100 * mean("core", "sift", prompts=range(4, 9))
    share /= mean("core", "nearest", prompts=range(4, 9))  # not a mean of ratios
    assert shown.rows[1][2].value == pytest.approx(share)


def test_a_caption_says_what_is_so_of_the_study(runs):
    artifact, shown = REGISTRY["table1"], tables.by_set(runs["core"])
    assert "stand in for GPT-2, Phi-3 and the Pile; queries are the first halves" in caption_of(
        artifact, shown, EvalConfig()
    )
    other = caption_of(artifact, shown, EvalConfig(model="gpt2", leakage="whole"))
    assert "stand in" not in other and "halves" not in other


def test_fig5_and_fig16_compare_models_by_prompt(runs):
    main, small = joined(runs, "core+lambda"), joined(runs, "small+small-lambda")
    gap = mean("core", "sift", ("core", "nearest")) - mean("small", "sift", ("small", "nearest"))
    assert figures.models(main, small).numbers["SIFT − NN, main − small"].value == (
        pytest.approx(gap)
    )
    overfits = mean("core", "nearest-repeated", ("small", "nearest-repeated"))
    shown = figures.larger_learns_faster(main, small)
    assert shown.numbers["NN-F, main − small"].value == pytest.approx(overfits)


def test_fig8_and_fig26_stop_where_sigma_says(runs):
    """Against the rule of the paper, prompt by prompt and step by step."""
    taken, reached = compute.stopped(runs["core"])
    want, gaps = set(), []
    for alpha in compute.ALPHAS:
        own = []
        for i in range(9):
            over = [m for m in range(1, 5) if (1 + i) ** (-m / 20) > 1 / (alpha * m)]
            steps = (over[0] if over else 5) - 1
            scored = max(s for s in studies.STEPS if s <= steps)
            want.add((scored, studies.draw("core", "sift", i, scored)))  # a prompt once a step
            own.append((scored, studies.draw("core", "sift", i, scored)))
        fixed = [mean("core", "sift", step=s) for s in studies.STEPS]
        taken_on_average = np.mean([s for s, _ in own])
        even = np.interp(np.log1p(taken_on_average), np.log1p(studies.STEPS), fixed)
        gaps.append(np.mean([percent for _, percent in own]) - even)
    assert sorted(taken) == sorted(steps for steps, _ in want)
    assert sorted(reached) == pytest.approx(sorted(percent for _, percent in want))
    shown = compute.proportional(runs["core"])
    over_fixed = shown.numbers["adaptive − fixed"]
    assert over_fixed.value == pytest.approx(np.mean(gaps)) and over_fixed.n == 9
    oracle = np.mean([min(studies.draw("core", "sift", i, s) for s in studies.STEPS)
                      for i in range(9)])  # fmt: skip
    assert shown.rows[0][2].value == pytest.approx(oracle)


def test_fig10_is_the_change_of_the_gap(runs):
    shown = figures.data_size(runs["core"], runs["third"], runs["thirtieth"])
    whole = mean("core", "sift", ("core", "nearest"))
    few = mean("thirtieth", "sift", ("thirtieth", "nearest"))
    assert shown.numbers["SIFT − NN, 100 % − 3 %"].value == pytest.approx(whole - few)
    assert [row[0] for row in shown.rows] == ["3 %", "33 %", "100 %"]


def test_fig11_is_paired(runs):
    shown = figures.lengths(runs["unit"], runs["raw"])
    wanted = mean("unit", "sift", ("raw", "sift"))
    assert shown.numbers["normalized − not, SIFT"].value == pytest.approx(wanted)


def test_fig12_is_scipys_rank_correlation_over_sets(base, tmp_path):
    run = studies.run(tmp_path, "core", methods=figures.CORE)
    shown = ground.boundary(run, base)
    assert [row[0] for row in shown.rows] == ["arxiv", "github"]  # the space has no third set
    assert sum(row[2] for row in shown.rows) == pytest.approx(100)
    assert shown.rows[0][3].value == pytest.approx(mean("core", "sift", prompts=(1, 4, 7)))
    x, y = np.array([3.0, 1, 2, 5]), np.array([1.0, 4, 2, 0])
    assert ground.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert ground.spearman(x, np.ones(4)) == 0


@pytest.mark.parametrize("name", ["fig1", "fig13", "fig14", "fig15", "fig18"])
def test_curves_end_at_the_mean_and_pair_what_they_claim(runs, name):
    artifact = REGISTRY[name]
    methods, pair = (artifact.view.keywords[key] for key in ("methods", "pair"))
    shown = artifact.view(joined(runs, artifact.runs[0]))
    home = {m: spec for spec in artifact.runs[0].split("+") for m in runs[spec].methods}
    for method, label in methods.items():
        assert shown.numbers[label].value == pytest.approx(mean(home[method], method))
    first, second = pair
    wanted = mean(home[first], first, (home[second], second))
    claim = f"{methods[first]} − {methods[second]}"
    assert shown.numbers[claim].value == pytest.approx(wanted)


def test_the_plane_counts_all_seconds_but_scoring(runs):
    shown = compute.plane(joined(runs, "core+lambda+rivals"))
    assert shown.numbers["seconds of SIFT"].value == pytest.approx(5 * 0.16)
    cost = compute.inference(joined(runs, "core+context+rivals"))
    assert cost.numbers["SIFT, × one scoring"].value == pytest.approx(0.8 / 0.5)
    assert cost.numbers["retrieval, % of the seconds"].value == pytest.approx(100 * 0.06 / 0.16)


def test_the_scaling_fit_finds_a_power_law(tmp_path):
    def law(name, method, prompt, step):
        return 100 * (1 + step) ** -0.125

    run = studies.run(tmp_path, "core", methods=(*figures.CORE, "sift(0.1)"), percent=law)
    exponent = figures.scaling(run).numbers["exponent of SIFT"]
    assert exponent.value == pytest.approx(0.125) and exponent.high - exponent.low < 1e-9


def test_insight7_counts_the_negative_candidates(runs):
    numbers = figures.negative(runs["gradient"]).numbers
    assert numbers["candidates of negative cosine, %"].value == 25
    wanted = mean("gradient", "sift", ("gradient", "sift(sign=positive)"))
    assert numbers["SIFT − SIFT, positive only"].value == pytest.approx(wanted)


def test_diversity_falls_as_the_noise_grows(shown_of):
    shown = shown_of("table3")
    assert shown.numbers["λ with different picks"].high < 0
    assert shown.rows[1][3].value == -shown.rows[0][3].value
    counts = [row[2].value for row in shown_of("fig9").rows[: len(ground.LAMBDAS)]]
    assert all(a >= b for a, b in pairwise(counts)) and counts[-1] < counts[0] / 4


def test_irreducible_uncertainty_is_the_distance_to_the_span(base):
    """Least squares, prompt by prompt, on the nearest of the same draw."""
    left = ground._irreducible(base)
    whole = left[1.0]
    for query, rows, sigma in zip(base.queries, base.candidates(), whole, strict=True):
        fit, *_ = np.linalg.lstsq(rows.T, query.astype(float), rcond=None)
        assert sigma == pytest.approx(np.linalg.norm(query - rows.T @ fit), abs=1e-6)
    means = [left[share].mean() for share in ground.SHARES]
    assert means[0] > means[-1] and means == sorted(means, reverse=True)


def test_cosines_are_those_of_all_texts(base, shown_of):
    shown = shown_of("fig21")
    rows = base.space.vectors(base.space.rows)
    lengths = np.linalg.norm(rows, axis=1)
    whole = base.queries @ rows.T / lengths
    assert shown.rows[0][1] == whole.size
    assert shown.rows[0][2].value == pytest.approx(whole.mean(), abs=1e-4)
    assert shown.rows[0][3] == pytest.approx(whole.min(), abs=1e-3)


def test_the_corpus_is_counted_in_bytes(base, shown_of):
    shown = shown_of("corpus")
    texts = base.space.documents(base.space.rows)
    for name, count, mib, _, _ in shown.rows:
        own = [len(d.text.encode()) for d in texts if d.meta["set"] == name]
        assert (count, mib) == (len(own), sum(own) / 2**20)


def test_the_statements_hold_on_small_models(shown_of):
    numbers = shown_of("statements").numbers
    assert numbers["K.1: NN-F stays above its floor, %"].value == 100
    assert numbers["K.1: σ² of SIFT − floor of NN-F"].value < 0
    assert numbers["3.2: within the bound, %"].value >= 90
    assert numbers["3.3: distance ÷ bound"].value == pytest.approx(1, abs=1e-6)


def test_joined_runs_have_the_methods_of_all_and_the_prompts_of_each(runs, tmp_path):
    fewer = studies.run(tmp_path, "lambda", methods=("mmr",), prompts=5, model="main-model")
    both = join([runs["core"], fewer])
    assert both.methods == (*runs["core"].methods, "mmr") and len(both) == 5
    np.testing.assert_array_equal(both.bits("sift"), runs["core"].bits("sift")[:5])
    np.testing.assert_array_equal(both.bits("mmr"), fewer.bits("mmr"))
    with pytest.raises(RunFolderError, match="has model 'main-model', but .* 'small-model'"):
        join([runs["core"], runs["small"]])
    for key, value in [("seed", 1), ("lr", 0.5)]:
        meta = fewer.meta | {"switches": fewer.meta["switches"] | {key: value}}
        with pytest.raises(RunFolderError, match=f"has {key} .*, but .*{value}"):
            join([runs["core"], replace(fewer, meta=meta)])
    for key in ("space", "prompts"):
        with pytest.raises(RunFolderError, match=f"has {key} .*, but .*another"):
            join([runs["core"], replace(fewer, meta=fewer.meta | {key: "another"})])
    assert len(align_runs(runs["core"], fewer)[0]) == 5


def test_an_unknown_artefact_is_told_the_known_ones():
    assert parse_names("all") == list(REGISTRY) and parse_names("fig9") == ["fig9"]
    with pytest.raises(ValueError, match="artifact is 'fig99': expected all, table1, table2"):
        parse_names("fig99")


def test_numbers_are_spelled_with_the_digits_they_need():
    assert [number(x) for x in (73.51, -1.234, 0.86249, 1.2e-5, 123456.0, 0.0)] == [
        "73.5", "-1.23", "0.862", "1.2e-05", "123,456", "0.000",
    ]  # fmt: skip
    assert format_cell(None) == "–" and format_cell("x") == "x" and format_cell(3) == "3"
    assert format_cell(Estimate(1.0, 1.0, 1.0, 1)) == "1.00"
    assert format_cell(Estimate(1.0, 0.5, 2.0, 9)) == "1.00 [0.500, 2.00]"


def test_labels_are_moved_apart_and_keep_their_order():
    placed = spread([0.0, 0.1, 0.1, 5.0, -3.0], 1.0)
    order = sorted(range(5), key=lambda i: placed[i])
    assert order == [4, 0, 1, 2, 3]
    heights = sorted(placed)
    assert all(b - a >= 1 - 1e-9 for a, b in pairwise(heights))
    assert placed[3:] == [5.0, -3.0] and np.mean(placed[:3]) == pytest.approx(0.2 / 3)
