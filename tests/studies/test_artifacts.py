"""Every artifact on a fictitious study, with each statistic checked by an independent formula."""

import json
import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from support import fake_studies
from support.hashing_embedder import HashingEmbedder

from studies import cost_figures, figures, retrieval_figures, tables, two_facts
from studies.artifact import format_cell, format_number
from studies.build import write_caption
from studies.claims import CLAIMS
from studies.metrics import (
    LAMBDAS,
    PILE_DOCUMENTS,
    bits_and_bytes,
    lambda_of,
    over_pile,
    spearman,
)
from studies.plotting import spread
from studies.registry import REGISTRY, parse_names
from studies.retrieval_figures import QuerySet
from studies.run_specs import CORE
from whet.data.documents import Document
from whet.errors import RunFolderError, SourceError
from whet.evaluate.config import PLAIN_TRAINING, EvalConfig
from whet.evaluate.dataset import Prompt, Prompts
from whet.evaluate.report.uncertainty import ALPHAS
from whet.evaluate.results import align_runs, join
from whet.maths.statistics import Estimate
from whet.space.space import DataSpace

NEEDS_OTHER_DATA = {
    "SIFT − NN where few", "share with % of base", "still trained − all",
    "worst set, SIFT", "worst set, SIFT − NN", "worst set, SIFT − best baseline",
}  # other picks; a third set; a larger α; sets of ten prompts  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return fake_studies.all_runs(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    return fake_studies.query_set(tmp_path_factory.mktemp("queries"))


@pytest.fixture(scope="module")
def artifact_of(runs, queries):
    """Compute an artifact by name, once."""

    @cache
    def compute(name):
        spec = REGISTRY[name]
        arguments = [joined(runs, names) for names in spec.runs] + [queries] * spec.queries
        return spec.view(*arguments)

    return compute


def joined(runs, names):
    return join([runs[name] for name in names.split("+")])


def mean(name, method, other=None, prompts=range(9), step=4):
    """Mean % of base, or the mean difference to another method, directly from `percent_of`."""
    values = [fake_studies.percent_of(name, method, i, step) for i in prompts]
    subtracted = (
        [fake_studies.percent_of(*other, i, step) for i in prompts]
        if other
        else [0.0] * len(values)
    )
    return math.fsum(a - b for a, b in zip(values, subtracted, strict=True)) / len(values)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_artifact_is_a_table_two_figures_and_a_record(artifact_of, name, tmp_path):
    spec, artifact = REGISTRY[name], artifact_of(name)
    assert artifact.rows and all(len(row) == len(artifact.columns) for row in artifact.rows)
    assert all(e.low <= e.value <= e.high and e.n > 0 for e in artifact.numbers.values())
    claimed = {claim.number for claim in CLAIMS if claim.artifact == name}
    assert claimed - NEEDS_OTHER_DATA <= artifact.numbers.keys()
    path, png, svg = artifact.write(tmp_path, name, {"name": name})
    record = json.loads(path.read_text())
    assert record["columns"] == list(artifact.columns)
    assert record["numbers"].keys() == artifact.numbers.keys()
    assert png.read_bytes()[:4] == b"\x89PNG" and "<svg" in svg.read_text()
    assert f"n = {artifact.n:,}" in write_caption(spec, artifact, EvalConfig())
    assert artifact.table(spec.title).row_count == len(artifact.rows)


@pytest.mark.parametrize("name", [name for name, spec in REGISTRY.items() if spec.runs])
def test_a_run_without_the_methods_of_an_artifact_is_refused(runs, queries, name, tmp_path):
    spec = REGISTRY[name]
    other = fake_studies.run(tmp_path, "other", methods=("random",))
    arguments = [other for _ in spec.runs] + [queries] * spec.queries
    with pytest.raises(RunFolderError, match=r"other has no method '.*': expected random(\n|$)"):
        spec.view(*arguments)


def test_equal_figures_give_equal_files(runs, tmp_path):
    artifact = tables.by_set(runs["core"])
    once, twice = (artifact.write(tmp_path / x, "t", {}) for x in "ab")
    assert [p.read_bytes() for p in once] == [p.read_bytes() for p in twice]


def test_sets_come_from_the_named_field(tmp_path):
    documents = [Document(f"d{i}", f"w{i} alpha beta", {"kind": "ab"[i % 2]}) for i in range(20)]
    space = DataSpace.build(documents, tmp_path / "space", HashingEmbedder(24))
    prompts = tuple(Prompt(Document(f"p{i}", text, {}), "a") for i, text in
                    enumerate(["alpha beta", "x"]))  # fmt: skip
    queries = QuerySet.embed(space, Prompts("", prompts), "meta.kind")  # "x" cannot be split
    assert len(queries.queries) == 1
    assert {row[0] for row in retrieval_figures.documents_by_set(queries).rows} == {"a", "b"}
    with pytest.raises(SourceError, match="no prompt has a term in common"):
        QuerySet.embed(space, Prompts("", prompts[1:] * 2), "set")


def test_table1_is_paired_by_prompt(runs):
    artifact = tables.by_set(runs["core"])
    assert artifact.numbers["SIFT"].value == pytest.approx(mean("core", "sift"))
    expected = mean("core", "sift", ("core", "nearest"))
    assert artifact.numbers["SIFT − NN"].value == pytest.approx(expected)
    arxiv = next(row for row in artifact.rows if row[0] == "arxiv")
    means = [mean("core", m, prompts=(1, 4, 7)) for m in CORE]
    assert [cell.value for cell in arxiv[3:7]] == pytest.approx(means)
    assert arxiv[7] == pytest.approx(means[3] - min(means[:3]))


def test_table2_weights_sets_equally(runs):
    artifact = tables.by_model(runs["core"], runs["small"])
    tuned = [
        np.mean([fake_studies.percent_of("small", "sift", i, 4) for i in range(s, 9, 3)])
        for s in range(3)
    ]
    expected = np.mean(tuned) / 100 * fake_studies.BASE_BITS / fake_studies.BYTES
    cells = {row[0]: row[1].value for row in artifact.rows}
    assert cells["small-model + SIFT"] == pytest.approx(expected)
    assert cells["main-model"] == pytest.approx(2.0)
    assert artifact.numbers["small + SIFT − main base"].value == pytest.approx(expected - 2.0)
    without = next(row for row in artifact.rows if row[0] == "small-model + SIFT")[2]
    assert without.value == pytest.approx(np.mean(tuned[:2]) / 50)
    assert without.n == 6


def test_table6_is_paired_and_reports_the_hard_sets(runs):
    artifact = tables.context_or_training(joined(runs, "core+context"))
    pair = ("core", "sift", ("context", "sift(use=context)"))
    assert artifact.numbers["steps − in context"].value == pytest.approx(mean(*pair))
    hard = mean(*pair, prompts=(0, 1, 3, 4, 6, 7))  # github and arxiv
    assert artifact.numbers["steps − in context, hard sets"].value == pytest.approx(hard)


def test_table11_reports_the_worst_lambda(runs):
    artifact = tables.by_lambda(joined(runs, "core+lambda"))
    gaps = {
        m: mean("core" if m == "sift" else "lambda", m, ("core", "nearest")) for m in LAMBDAS
    }  # fmt: skip
    worst = max(gaps, key=gaps.get)
    assert artifact.numbers["worst λ' − NN"].value == pytest.approx(gaps[worst])
    assert artifact.numbers["best λ' − NN"].value == pytest.approx(min(gaps.values()))
    assert f"{lambda_of(worst):g}" in artifact.note
    assert [lambda_of(m) for m in LAMBDAS] == [1e-8, 1e-4, 0.01, 0.1, 1, 10]


def test_claims_about_all_sets_are_about_the_worst(tmp_path):
    run = fake_studies.run(tmp_path, "core", methods=CORE, prompts=30)
    numbers = tables.by_set(run).numbers
    sets = [range(start, 30, 3) for start in range(3)]
    worst = max(mean("core", "sift", prompts=own) for own in sets)
    assert numbers["worst set, SIFT"].value == pytest.approx(worst)
    gaps = [mean("core", "sift", prompts=own) - min(mean("core", m, prompts=own) for m in CORE[:3])
            for own in sets]  # fmt: skip
    assert numbers["worst set, SIFT − best baseline"].value == pytest.approx(max(gaps))
    assert numbers["worst set, SIFT − best baseline"].n == 10
    few = tables.by_set(fake_studies.run(tmp_path, "few", methods=CORE)).numbers
    assert "worst set, SIFT" not in few


def test_pile_weights_are_those_of_a_sample_of_the_pile(runs):
    run = runs["core"]
    made = over_pile(run, bits_and_bytes(run, "sift")).value
    sets, bits = run.column("set").tolist(), run.bits("sift")
    total = sum(
        PILE_DOCUMENTS[name] * np.mean([b for b, s in zip(bits, sets, strict=True) if s == name])
        for name in set(sets)
    )
    documents = sum(PILE_DOCUMENTS[name] for name in set(sets))
    assert made == pytest.approx(total / (documents * fake_studies.BYTES))


def test_fig3_counts_the_facts(tmp_path):
    space = DataSpace.build(["a b", "c d"], tmp_path / "space", HashingEmbedder(256))
    made = two_facts.two_facts(QuerySet(space, np.ones((1, 256))))
    assert made.numbers["facts covered by SIFT"].value in (1, 2) and len(made.rows) == 3
    assert {row[2] for row in made.rows} == {"1", "2", "–"}


def test_table12_agrees_with_scipy(artifact_of):
    artifact = artifact_of("table12")
    sigma = [(1 + i) ** (-4 / 20) for i in range(9)]
    after = [fake_studies.percent_of("core", "sift", i, 4) for i in range(9)]
    expected = stats.pearsonr(sigma, after).statistic
    assert artifact.numbers["σ with bits per byte"].value == pytest.approx(expected)
    gain = stats.spearmanr(sigma, [1 / a for a in after]).statistic
    assert artifact.numbers["σ with gain"].value == pytest.approx(gain)


def test_fig6_groups_by_distinct_picks(tmp_path):
    def picks(method, prompt, step):
        return "d0" if prompt < 4 else f"d{step}"

    run = fake_studies.run(tmp_path, "core", methods=CORE, picks=picks)
    artifact = figures.by_distinct_documents(run)
    assert [row[1] for row in artifact.rows] == [9, 5]  # one of four is more than a fifth of them
    assert artifact.numbers["distinct documents"].value == pytest.approx((4 * 1 + 5 * 4) / 9)
    gap = mean("core", "sift", ("core", "nearest-repeated"), prompts=range(4, 9))
    assert artifact.numbers["SIFT − NN-F where many"].value == pytest.approx(gap)
    share = 100 * mean("core", "sift", prompts=range(4, 9))
    share /= mean("core", "nearest", prompts=range(4, 9))  # not a mean of ratios
    assert artifact.rows[1][2].value == pytest.approx(share)


def test_a_caption_states_the_differences_that_apply(runs):
    spec, artifact = REGISTRY["table1"], tables.by_set(runs["core"])
    assert "stand in for GPT-2, Phi-3 and the Pile; queries are the first halves" in write_caption(
        spec, artifact, EvalConfig()
    )
    first = replace(PLAIN_TRAINING, long_texts="first")
    other = EvalConfig(model="gpt2", leakage="whole", training=first)
    other = write_caption(spec, artifact, other)
    assert "stand in" not in other and "halves" not in other and "trained on up to" in other
    config = EvalConfig.from_table({"model": "gpt2", "protocol": "paper"})
    assert "Differences" not in write_caption(spec, artifact, config)


def test_fig5_and_fig16_compare_models_by_prompt(runs):
    main, small = joined(runs, "core+lambda"), joined(runs, "small+small-lambda")
    gap = mean("core", "sift", ("core", "nearest")) - mean("small", "sift", ("small", "nearest"))
    assert figures.by_model_and_lambda(main, small).numbers["SIFT − NN, main − small"].value == (
        pytest.approx(gap)
    )
    overfits = mean("core", "nearest-repeated", ("small", "nearest-repeated"))
    artifact = figures.curves_by_model(main, small)
    assert artifact.numbers["NN-F, main − small"].value == pytest.approx(overfits)


def test_fig8_has_the_prompts_that_are_still_trained(runs):
    """Compares with the rule of the paper, prompt by prompt and step by step."""
    for alpha in (cost_figures.ALPHA, 0.3, 0.5):
        made = cost_figures.still_trained(runs["core"], alpha)
        for step in fake_studies.STEPS:
            taken = [adaptive_stop(i, alpha) for i in range(9)]
            left = [i for i in range(9) if taken[i] >= step]
            if left:
                expected = mean("core", "sift", prompts=left, step=step)
                assert (made[step].value, made[step].n) == (pytest.approx(expected), len(left))
            else:
                assert step not in made
    mask = np.arange(9) < 4
    gap = cost_figures.still_trained_minus_all(runs["core"], mask)
    expected = mean("core", "sift", prompts=range(4)) - mean("core", "sift")
    assert (gap.value, gap.n) == (pytest.approx(expected), 4) and gap.low < gap.value < gap.high


def adaptive_stop(prompt, alpha):
    """The steps of adaptive SIFT on a prompt of the fictitious study."""
    over = [m for m in range(1, 5) if (1 + prompt) ** (-m / 20) > 1 / (alpha * m)]
    return (over[0] if over else 5) - 1


def test_fig8_pools_all_steps_of_all_prompts(artifact_of):
    numbers = artifact_of("fig8").numbers
    pairs = [(i, s) for i in range(9) for s in fake_studies.STEPS[1:]]
    sigma = [(1 + i) ** (-s / 20) for i, s in pairs]
    after = [fake_studies.percent_of("core", "sift", i, s) for i, s in pairs]
    expected = stats.pearsonr(sigma, after).statistic
    assert numbers["σ with bits per byte, all steps"].value == pytest.approx(expected)


def test_fig26_stops_by_the_rule(runs):
    gaps = []
    for alpha in ALPHAS:
        scored = [max(s for s in fake_studies.STEPS if s <= adaptive_stop(i, alpha))
                  for i in range(9)]  # fmt: skip
        percent = [fake_studies.percent_of("core", "sift", i, s) for i, s in enumerate(scored)]
        fixed = [mean("core", "sift", step=s) for s in fake_studies.STEPS]
        even = np.interp(np.log1p(np.mean(scored)), np.log1p(fake_studies.STEPS), fixed)
        gaps.append(np.mean(percent) - even)
    artifact = cost_figures.stopping_rules(runs["core"])
    over_fixed = artifact.numbers["adaptive − fixed"]
    assert over_fixed.value == pytest.approx(np.mean(gaps)) and over_fixed.n == 9
    oracle = np.mean([min(fake_studies.percent_of("core", "sift", i, s) for s in fake_studies.STEPS)
                      for i in range(9)])  # fmt: skip
    assert artifact.rows[0][2].value == pytest.approx(oracle)


def test_fig10_is_the_change_of_the_difference(runs):
    artifact = figures.by_data_share(runs["core"], runs["third"], runs["thirtieth"])
    whole = mean("core", "sift", ("core", "nearest"))
    few = mean("thirtieth", "sift", ("thirtieth", "nearest"))
    assert artifact.numbers["SIFT − NN, 100 % − 3 %"].value == pytest.approx(whole - few)
    assert [row[0] for row in artifact.rows] == ["3 %", "33 %", "100 %"]


def test_fig11_is_paired(runs):
    artifact = figures.effect_of_normalization(runs["unit"], runs["unnormalized"])
    expected = mean("unit", "sift", ("unnormalized", "sift"))
    assert artifact.numbers["normalized − not, SIFT"].value == pytest.approx(expected)


def test_fig12_is_a_rank_correlation_over_sets(queries, tmp_path):
    run = fake_studies.run(tmp_path, "core", methods=CORE)
    artifact = retrieval_figures.gain_by_share(run, queries)
    assert [row[0] for row in artifact.rows] == [
        "arxiv",
        "github",
    ]  # the data space has no third set
    assert sum(row[2] for row in artifact.rows) == pytest.approx(100)
    assert artifact.rows[0][3].value == pytest.approx(mean("core", "sift", prompts=(1, 4, 7)))
    x, y = np.array([3.0, 1, 2, 5]), np.array([1.0, 4, 2, 0])
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman(x, np.ones(4)) == 0


@pytest.mark.parametrize("name", ["fig1", "fig13", "fig14", "fig15", "fig18"])
def test_curves_end_at_the_mean_and_claims_are_paired(runs, name):
    spec = REGISTRY[name]
    methods, pair = (spec.view.keywords[key] for key in ("methods", "pair"))
    artifact = spec.view(joined(runs, spec.runs[0]))
    run_of = {m: name for name in spec.runs[0].split("+") for m in runs[name].methods}
    for method, label in methods.items():
        assert artifact.numbers[label].value == pytest.approx(mean(run_of[method], method))
    first, second = pair
    expected = mean(run_of[first], first, (run_of[second], second))
    claim = f"{methods[first]} − {methods[second]}"
    assert artifact.numbers[claim].value == pytest.approx(expected)


def test_the_plane_counts_all_seconds_except_scoring(runs):
    artifact = cost_figures.quality_against_seconds(joined(runs, "core+lambda+rivals+streaming"))
    assert artifact.numbers["seconds of SIFT"].value == pytest.approx(5 * 0.16)
    cost = cost_figures.seconds_by_phase(joined(runs, "core+context+rivals"))
    assert cost.numbers["SIFT, × one scoring"].value == pytest.approx(0.8 / 0.5)
    assert cost.numbers["retrieval, % of the seconds"].value == pytest.approx(100 * 0.06 / 0.16)


def test_the_scaling_fit_finds_a_power_law(tmp_path):
    def law(name, method, prompt, step):
        return 100 * (1 + step) ** -0.125

    run = fake_studies.run(tmp_path, "core", methods=(*CORE, "sift(0.1)"), percent=law)
    exponent = figures.scaling_law(run).numbers["exponent of SIFT"]
    assert exponent.value == pytest.approx(0.125) and exponent.high - exponent.low < 1e-9


def test_insight7_counts_the_negative_candidates(runs):
    numbers = figures.negative_cosines(runs["gradient"]).numbers
    assert numbers["candidates of negative cosine, %"].value == 25
    expected = mean("gradient", "sift", ("gradient", "sift(metric=cosine)"))
    assert numbers["SIFT − SIFT, positive only"].value == pytest.approx(expected)


def test_diversity_decreases_with_lambda(artifact_of):
    artifact = artifact_of("table3")
    assert artifact.numbers["λ with distinct picks"].high < 0
    assert artifact.rows[1][3].value == -artifact.rows[0][3].value
    counts = [row[2].value for row in artifact_of("fig9").rows[: len(retrieval_figures.LAMBDAS)]]
    assert all(a >= b for a, b in pairwise(counts)) and counts[-1] < counts[0] / 4


def test_irreducible_uncertainty_is_the_distance_to_the_span(queries):
    """Compares with least squares, prompt by prompt."""
    by_share = retrieval_figures.irreducible_std_by_share(queries)
    whole = by_share[1.0]
    for query, rows, sigma in zip(queries.queries, queries.candidates(), whole, strict=True):
        fit, *_ = np.linalg.lstsq(rows.T, query.astype(float), rcond=None)
        assert sigma == pytest.approx(np.linalg.norm(query - rows.T @ fit), abs=1e-6)
    means = [by_share[share].mean() for share in retrieval_figures.SHARES]
    assert means[0] > means[-1] and means == sorted(means, reverse=True)


def test_cosines_cover_all_documents(queries, artifact_of):
    artifact = artifact_of("fig21")
    rows = queries.space.vectors(queries.space.rows)
    lengths = np.linalg.norm(rows, axis=1)
    whole = queries.queries @ rows.T / lengths
    assert artifact.rows[0][1] == whole.size
    assert artifact.rows[0][2].value == pytest.approx(whole.mean(), abs=1e-4)
    assert artifact.rows[0][3] == pytest.approx(whole.min(), abs=1e-3)


def test_documents_are_counted_in_bytes(queries, artifact_of):
    artifact = artifact_of("corpus")
    texts = queries.space.documents(queries.space.rows)
    for name, count, mib, _, _ in artifact.rows:
        lengths = [len(d.text.encode()) for d in texts if d.meta["set"] == name]
        assert (count, mib) == (len(lengths), sum(lengths) / 2**20)


def test_the_formal_statements_hold(artifact_of):
    numbers = artifact_of("statements").numbers
    assert numbers["K.1: NN-F stays above its lower bound, %"].value == 100
    assert numbers["K.1: σ² of SIFT − lower bound of NN-F"].value < 0
    assert numbers["3.2: within the bound, %"].value >= 90
    assert numbers["3.3: distance ÷ bound"].value == pytest.approx(1, abs=1e-6)


def test_joined_runs_have_the_methods_of_all_and_the_common_prompts(runs, tmp_path):
    fewer = fake_studies.run(tmp_path, "lambda", methods=("mmr",), prompts=5, model="main-model")
    both = join([runs["core"], fewer])
    assert both.methods == (*runs["core"].methods, "mmr") and len(both) == 5
    np.testing.assert_array_equal(both.bits("sift"), runs["core"].bits("sift")[:5])
    np.testing.assert_array_equal(both.bits("mmr"), fewer.bits("mmr"))
    with pytest.raises(RunFolderError, match="has model 'main-model', but .* has 'small-model'"):
        join([runs["core"], runs["small"]])
    for key, value in [("seed", 1), ("lr", 0.5)]:
        config = fewer.config.with_settings(**{key: value}).to_table()
        with pytest.raises(RunFolderError, match=f"has {key} .*, but .*{value}"):
            join([runs["core"], replace(fewer, meta=fewer.meta | {"config": config})])
    for key in ("space", "prompts"):
        with pytest.raises(RunFolderError, match=f"has {key} .*, but .*another"):
            join([runs["core"], replace(fewer, meta=fewer.meta | {key: "another"})])
    assert len(align_runs(runs["core"], fewer)[0]) == 5


def test_an_unknown_artifact_lists_the_known_ones():
    assert parse_names("all") == list(REGISTRY) and parse_names("fig9") == ["fig9"]
    with pytest.raises(ValueError, match="artifact is 'fig99': expected all, table1, table2"):
        parse_names("fig99")


def test_numbers_are_formatted_with_the_digits_they_need():
    assert [format_number(x) for x in (73.51, -1.234, 0.86249, 1.2e-5, 123456.0, 0.0)] == [
        "73.5", "-1.23", "0.862", "1.2e-05", "123,456", "0.000",
    ]  # fmt: skip
    assert format_cell(None) == "–" and format_cell("x") == "x" and format_cell(3) == "3"
    assert format_cell(Estimate(1.0, 1.0, 1.0, 1)) == "1.00"
    assert format_cell(Estimate(1.0, 0.5, 2.0, 9)) == "1.00 [0.500, 2.00]"


def test_overlapping_labels_are_moved_apart_in_order():
    placed = spread([0.0, 0.1, 0.1, 5.0, -3.0], 1.0)
    order = sorted(range(5), key=lambda i: placed[i])
    assert order == [4, 0, 1, 2, 3]
    heights = sorted(placed)
    assert all(b - a >= 1 - 1e-9 for a, b in pairwise(heights))
    assert placed[3:] == [5.0, -3.0] and np.mean(placed[:3]) == pytest.approx(0.2 / 3)
