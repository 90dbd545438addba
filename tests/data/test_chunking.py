"""Pieces of texts: nothing lost, nothing twice, none too long."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from whet.data.chunking import TOKEN, get_chunker

rules = st.tuples(st.sampled_from(["tokens", "paragraph"]), st.integers(1, 30))
texts = st.text(st.sampled_from("ab é二\n\n\n  .-"), max_size=80)


@given(rule=rules, text=texts)
@example(rule=("paragraph", 3), text="\n\n\n\nabc\n\n\n")
def test_pieces_follow_each_other_and_lose_only_blanks(rule, text):
    kind, size = rule
    spans = get_chunker(f"{kind}:{size}")(text)
    places = [place for span in spans for place in span]
    assert places == sorted(places)
    assert all(text[start:stop].strip() for start, stop in spans)
    kept = {place for span in spans for place in range(*span)}
    assert all(letter.isspace() for i, letter in enumerate(text) if i not in kept)


@given(rule=rules, text=texts)
def test_no_piece_is_longer_than_the_rule_says(rule, text):
    kind, size = rule
    for start, stop in get_chunker(f"{kind}:{size}")(text):
        piece = text[start:stop]
        assert (len(TOKEN.findall(piece)) if kind == "tokens" else len(piece)) <= size


def test_paragraphs_are_kept_together_where_they_fit():
    text = "one\n\ntwo\n \nthree is a long paragraph\nof two lines"
    pieces = [text[start:stop] for start, stop in get_chunker("paragraph:30")(text)]
    assert pieces == ["one\n\ntwo\n \n", "three is a long paragraph\n", "of two lines"]
    pieces = [text[start:stop] for start, stop in get_chunker("paragraph:10")(text)]
    assert pieces[2:4] == ["three is ", "a long "]


def test_tokens_are_words_and_signs():
    text = " f(x) = internationalisation"
    pieces = [text[start:stop] for start, stop in get_chunker("tokens:2")(text)]
    assert pieces == [" f(", "x) ", "= internationalisa", "tion"]


@pytest.mark.parametrize("rule", ["", "tokens", "tokens:0", "tokens:x", "tokens:-1", "lines:3"])
def test_an_unknown_rule_is_told_those_that_exist(rule):
    with pytest.raises(ValueError, match="expected whole, tokens:N or paragraph:N"):
        get_chunker(rule)


def test_a_text_of_a_million_characters_is_cut_in_a_moment():
    spans = get_chunker("paragraph:1000")("\n" + " " * 10**6 + "x" * 10**6)
    assert len(spans) == 1000
