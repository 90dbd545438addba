import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.space.context import Context, context

TEXTS = ["the first", "the second one", "third", "the first"]


def test_the_most_telling_text_stands_last_and_repeats_once():
    made = context(TEXTS, [4, 7, 2, 4], budget=100)
    assert made == Context("third\n\nthe second one\n\nthe first", (2, 7, 4), (), 32)


def test_gains_of_repeats_add_up():
    made = context(TEXTS, [4, 7, 2, 4], gains=np.array([0.3, 0.5, 0.1, 0.3]), budget=100)
    assert made.rows_used == (2, 7, 4)
    made = context(TEXTS[:3], np.array([4, 7, 2]), gains=[0.3, 0.5, 0.1], budget=100)
    assert made.rows_used == (2, 4, 7)


def test_what_does_not_fit_is_named_and_never_cut():
    made = context(TEXTS, [4, 7, 2, 4], budget=17, count_tokens=len)
    assert made == Context("third\n\nthe first", (2, 4), (7,), 16)
    assert context(TEXTS, [4, 7, 2, 4], budget=1) == Context("", (), (4, 7, 2), 0)


def test_rows_of_equal_text_share_it():
    made = context(["same", "other", "same"], [1, 2, 3], budget=4)
    assert (made.text, made.rows_used, made.rows_left_out) == ("same", (1, 3), (2,))


def test_tokens_are_counted_as_the_caller_counts():
    made = context(TEXTS, [4, 7, 2, 4], budget=5, count_tokens=lambda text: len(text.split()))
    assert (made.rows_used, made.rows_left_out, made.tokens) == ((7, 4), (2,), 5)


words = st.lists(st.text("ab ", min_size=1, max_size=12), min_size=0, max_size=8)


@given(texts=words, budget=st.integers(1, 60), separator=st.sampled_from(["", "\n\n", " | "]))
def test_every_row_is_accounted_for_within_the_budget(texts, budget, separator):
    made = context(texts, range(len(texts)), budget=budget, separator=separator)
    assert made.tokens == len(made.text) <= budget
    assert sorted(made.rows_used + made.rows_left_out) == list(range(len(texts)))
    distinct = list(dict.fromkeys(texts[row] for row in made.rows_used))
    assert made.text == separator.join(distinct)
    room = budget - len(made.text) - (len(separator) if made.rows_used else 0)
    assert all(len(texts[row]) > room for row in made.rows_left_out)


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_is_a_positive_whole_number(budget):
    with pytest.raises(ValueError, match="budget is"):
        context(["a"], [0], budget=budget)


def test_each_pick_has_a_text_and_a_row():
    with pytest.raises(ValueError, match="2 texts, 1 rows and 2 gains"):
        context(["a", "b"], [0], budget=9)
