"""Texts after a context are tokenized as both together, with tokenizers of either kind."""

import pytest
from support import tiny_models

from whet.adapt.model import LanguageModel
from whet.engine.in_context import InContext

PAIRS = [
    ("the import", " of the value"),
    ("a value", " in the list"),
    ("the list\n", "of the value"),
    ("the list.", "a value"),
    ("the list", "\n\nvalue"),
    ("the ", "value"),
]


@pytest.fixture(scope="module", params=list(tiny_models.TOKENIZERS))
def model(request, tmp_path_factory):
    folder = tiny_models.save_llama(tmp_path_factory.mktemp("tiny"), request.param)
    return LanguageModel.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(("context", "text"), PAIRS)
def test_a_text_after_a_context_is_scored_as_in_the_whole(model, context, text):
    left, whole = model.encode(context).tolist(), model.encode(context + text).tolist()
    after = model.encode_after(context, text)
    assert model.decode_after(model.encode(context), after.tolist()) == text
    if whole[: len(left)] == left:  # no token crosses the border
        assert left + after.tolist() == whole
        parts = model.score(context).bits + model.score(text, context=context).bits
        assert parts == pytest.approx(model.score(context + text).bits, rel=1e-5)


def test_a_text_without_a_context_is_read_alone(model):
    assert model.encode_after("", "value").tolist() == model.encode("value").tolist()
    assert model.decode_after(model.encode(""), model.encode("value").tolist()) == "value"


def test_examples_in_the_context_are_read_as_one_text(model):
    context, text = "a list", " of value"
    score = InContext(model, text, left=context).score(["the import", "the list"])
    joint = model.score(text, context="the list\n\nthe import\n\na list")
    assert score.bits == pytest.approx(joint.bits, rel=1e-5)
    in_order = InContext(model, text, left=context, order="selected").score(
        ["the list", "the import"]
    )
    assert in_order.bits == pytest.approx(joint.bits, rel=1e-5)
    alone = InContext(model, text, left=context).score([])
    assert alone.bits == pytest.approx(model.score(text, context=context).bits, rel=1e-5)


def test_examples_keep_to_their_budget(model):
    context = InContext(model, " of value", left="a list")
    assert len(context.examples(["the import of the value " * 20]).ids) == context.budget
    assert len(context.examples([]).ids) == 0


@pytest.fixture
def parsing(model):
    model.parse_special_tokens = True
    yield model
    model.parse_special_tokens = False


def test_special_tokens_are_read_in_prompts_but_not_in_training_texts(parsing):
    start = parsing.tokenizer.bos_token
    assert parsing.encode(start + "value")[0] == parsing.bos_token_id
    plain = parsing.training_tokens(start + "value")
    assert parsing.bos_token_id not in plain
    parsing.parse_special_tokens = False
    assert plain.tolist() == parsing.encode(start + "value").tolist()


def test_a_shared_model_reads_special_tokens_too(parsing):
    start = parsing.tokenizer.bos_token
    shared = parsing.share_weights()
    assert shared.parse_special_tokens
    assert shared.encode(start + "value").equal(parsing.encode(start + "value"))
    assert not shared.share_weights().max_length != parsing.max_length


def test_the_start_token_of_a_template_is_not_doubled(parsing):
    start = parsing.tokenizer.bos_token
    with_start = parsing.encode_prompt(start + "value", 1).tolist()
    assert with_start.count(parsing.bos_token_id) == 1
    left = parsing.encode(start + "a value")[1:]
    score = parsing.score(" in", context=start + "a value")
    tokens = [parsing.bos_token_id, *left.tolist()]
    assert parsing.encode_prompt(start + "a value", 1).tolist() == tokens
    assert score.num_tokens == len(parsing.encode_after(start + "a value", " in"))
