"""Pieces of texts: nothing lost, nothing twice, none too long."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from whet.data.chunking import TOKEN, WORD, get_chunker

rules = st.tuples(st.sampled_from(["passages", "tokens", "paragraph"]), st.integers(1, 30))
LENGTHS = {
    "passages": lambda piece: len(WORD.findall(piece)),
    "tokens": lambda piece: len(TOKEN.findall(piece)),
    "paragraph": len,
}
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
        assert LENGTHS[kind](piece) <= size


def test_paragraphs_are_kept_together_where_they_fit():
    text = "one\n\ntwo\n \nthree is a long paragraph\nof two lines"
    pieces = [text[start:stop] for start, stop in get_chunker("paragraph:30")(text)]
    assert pieces == ["one\n\ntwo\n \n", "three is a long paragraph\n", "of two lines"]
    pieces = [text[start:stop] for start, stop in get_chunker("paragraph:10")(text)]
    assert pieces[2:4] == ["three is ", "a long "]


def test_passages_end_where_an_author_would_pause():
    text = "One two. Three four five.\n\nSix seven eight nine ten.\n\n    more of it, to the end."
    pieces = [text[start:stop] for start, stop in get_chunker("passages:9")(text)]
    assert pieces == [
        "One two. Three four five.\n\n",
        "Six seven eight nine ten.\n\n",
        "    more of it, to the end.",
    ]
    code = "".join(f"def f{i}():\n    x = {i}\n\n    return x\n\n\n" for i in range(9))
    pieces = [code[start:stop] for start, stop in get_chunker("passages:40")(code)]
    assert len(pieces) > 2 and all(piece.startswith("def ") for piece in pieces)


@given(words=st.integers(1, 200), size=st.integers(4, 50))
def test_no_passage_is_a_small_rest(words, size):
    spans = get_chunker(f"passages:{size}")("word " * words)
    assert words <= size or min(stop - start for start, stop in spans) >= 5 * (size // 4)


def test_tokens_are_words_and_signs():
    text = " f(x) = internationalisation"
    pieces = [text[start:stop] for start, stop in get_chunker("tokens:2")(text)]
    assert pieces == [" f(", "x) ", "= internationalisa", "tion"]


@pytest.mark.parametrize("rule", ["", "tokens", "tokens:0", "tokens:x", "tokens:-1", "lines:3"])
def test_an_unknown_rule_is_told_those_that_exist(rule):
    with pytest.raises(ValueError, match="expected whole, passages:N, tokens:N or"):
        get_chunker(rule)


def test_a_text_of_a_million_characters_is_cut_in_a_moment():
    text = "\n" + " " * 10**6 + "x" * 10**6
    assert len(get_chunker("paragraph:1000")(text)) == 1000
    assert len(get_chunker("passages:300")(text)) == 278  # 12 letters of a word count as one
