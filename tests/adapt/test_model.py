import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import reference, reference_slot, tiny_models
from tokenizers import models
from transformers import GPT2LMHeadModel

from whet.adapt.batches import windows
from whet.adapt.model import LanguageModel
from whet.errors import ModelError


@pytest.fixture(scope="module", params=list(tiny_models.CONFIGS))
def model(request, tmp_path_factory):
    return LanguageModel.from_pretrained(
        tiny_models.save(tmp_path_factory.mktemp("tiny"), request.param)
    )


@given(tokens=st.integers(1, 60), context=st.integers(1, 20), skip=st.integers(0, 30))
def test_windows_ask_for_every_token_after_the_context_once(tokens, context, skip):
    asked = []
    for window in windows(tokens, context, skip=skip):
        assert 0 <= window.start < window.stop <= tokens and window.stop - window.start <= context
        asked += range(window.stop - window.targets, window.stop)
    assert asked == list(range(skip, tokens))


def test_last_window_has_all_the_left_context_that_fits():
    spans = [(w.start, w.stop, w.targets) for w in windows(10, 4)]
    assert spans == [(0, 4, 4), (4, 8, 4), (6, 10, 2)]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 75])
@pytest.mark.parametrize("left", ["", "left context, which is read and not scored: 0123"])
def test_bits_per_byte_equal_a_token_by_token_loop(model, length, left):
    text = ("Ünïcode and words. " * 9)[:length]
    score = model.score(text, context=left)
    assert score.bits == pytest.approx(reference.bits(model, text, left), rel=1e-5)
    assert score.num_bytes == len(text.encode())


def test_gelu_in_one_pass_is_the_network_s_own(tmp_path):
    path, ids = tiny_models.save(tmp_path, "gpt2"), torch.arange(20)[None]
    ours = LanguageModel.from_pretrained(path, dtype=torch.float64, device="cpu").hf_model
    plain = GPT2LMHeadModel.from_pretrained(path, dtype=torch.float64).eval()
    assert type(ours.transformer.h[0].mlp.act) is not type(plain.transformer.h[0].mlp.act)
    torch.testing.assert_close(ours(ids).logits, plain(ids).logits, rtol=1e-12, atol=1e-12)


def test_padding_of_the_vocabulary_is_cut_off(tmp_path):
    model = LanguageModel.from_pretrained(tiny_models.save(tmp_path, "gpt2"))
    before = model.score("some text").bits
    with torch.no_grad():
        rows = model.hf_model.get_output_embeddings().weight  # 264 rows, 257 tokens
        rows[257:] = 1e3
    assert model.score("some text").bits == before


def test_untrained_model_needs_about_the_entropy_of_its_vocabulary(tmp_path):
    model = LanguageModel.from_pretrained(tiny_models.save(tmp_path, "llama"))
    assert model.score("any text at all").bits_per_byte == pytest.approx(math.log2(257), rel=0.05)


def test_loss_is_the_score_of_a_text_that_fits_the_context(model):
    text = "a text of one window"
    nats = reference_slot.mean_loss(model, text).item() * len(text)
    assert nats / math.log(2) == pytest.approx(model.score(text).bits, rel=1e-5)


def test_loss_reads_the_first_context_tokens_only(model):
    assert (
        reference_slot.mean_loss(model, "x" * 32).item()
        == reference_slot.mean_loss(model, "x" * 32 + "something else").item()
    )


def test_generation_is_greedy_by_default_and_sampling_is_seeded(model):
    assert model.generate("abc", max_tokens=5) == model.generate("abc", max_tokens=5)
    draws = {model.generate("abc", max_tokens=8, temperature=2.0, seed=s) for s in (1, 1, 2, 3)}
    assert 2 <= len(draws) <= 3


def test_special_words_inside_a_text_are_plain_text(model):
    assert 256 not in model.encode("before <|endoftext|> after").tolist()


def test_bad_requests_name_the_value(model):
    with pytest.raises(ValueError, match="text to score is empty"):
        model.score("")
    with pytest.raises(ValueError, match="has no tokens"):
        model.training_tokens("")
    with pytest.raises(ValueError, match="prompt has 41 tokens and max_tokens is 5, but .* 32"):
        model.generate("x" * 40, max_tokens=5)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        model.generate("x", max_tokens=0)


def test_unknown_model_is_one_clear_line(tmp_path):
    with pytest.raises(ModelError, match="cannot load model .*nowhere.*whet-nano") as caught:
        LanguageModel.from_pretrained(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_tokenizer_larger_than_the_model_is_refused(tmp_path):
    model = LanguageModel.from_pretrained(tiny_models.save(tmp_path, "llama"))
    model.tokenizer.add_tokens(["<more>", "<and more>"])
    with pytest.raises(ModelError, match="has 257 output rows, but its tokenizer has 259 tokens"):
        LanguageModel(model.hf_model, model.tokenizer, "mixed")


def test_a_copy_shares_the_weights_and_is_exclusive_by_itself(model):
    other = model.share_weights()
    mine, its = (dict(m.hf_model.named_parameters()) for m in (model, other))
    assert mine.keys() == its.keys()
    assert all(mine[name].data_ptr() == its[name].data_ptr() for name in mine)
    its["lm_head.weight" if "lm_head.weight" in its else next(iter(its))].requires_grad_(False)
    assert all(own.requires_grad for own in mine.values())  # flags and gradients are its own
    with model.exclusive(), other.exclusive():
        assert other.score("one text") == model.score("one text")
    with model.exclusive(), pytest.raises(ModelError, match="is being adapted already"):
        model.share_weights()


def test_ids_of_a_tokenizer_may_have_gaps(tmp_path):
    tokenizer = tiny_models.tokenizer()
    tokenizer.backend_tokenizer.model = models.BPE(
        vocab=tokenizer.get_vocab() | {"z": 262}, merges=[]
    )
    network = LanguageModel.from_pretrained(
        tiny_models.save(tmp_path, "gpt2")
    ).hf_model  # has 264 rows
    model = LanguageModel(network, tokenizer, "gaps")
    assert model.vocab_size == 263 and model.encode("z").tolist() == [262]
    assert model.score("zebra").bits > 0


def test_tokens_that_the_model_does_not_know_are_refused(model):
    with pytest.raises(ValueError, match=r"prompt has token ids from 1 to 99999: .* has 0 to"):
        model.encode_prompt([1, 99999], 4)
