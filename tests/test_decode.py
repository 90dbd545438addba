"""Continuations a token at a time: as transformers makes them, and cut where told."""

import pytest
import tiny

from whet.adapt.decode import Decoder, Sampling
from whet.adapt.model import LanguageModel


@pytest.fixture(scope="module", params=[*tiny.CONFIGS, *tiny.MORE])
def model(request, tmp_path_factory):
    return LanguageModel.load(tiny.save(tmp_path_factory.mktemp("tiny"), request.param))


def pieces(model, prompt, **options):
    decoder, told = Decoder(model, prompt, Sampling(**options)), []
    while not decoder.finish:
        told.append(decoder.step())
    return decoder, told


def test_greedy_text_is_that_of_transformers(model):
    tokens = model.fitting("abc", 20)
    output = model.network.generate(tokens[None], max_new_tokens=20, do_sample=False)
    goal = model.tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True)
    decoder, told = pieces(model, "abc", max_tokens=20)
    assert decoder.text == "".join(told) == goal


def test_a_stop_text_ends_the_continuation_before_it(model):
    whole = pieces(model, "abc", max_tokens=20)[0].text
    stop = whole[4:7]
    decoder, told = pieces(model, "abc", max_tokens=20, stop=(stop, "never said"))
    assert decoder.text == "".join(told) == whole[: whole.index(stop)]
    assert decoder.finish == "stop"


def test_one_likeliest_token_is_greedy_at_any_temperature(model):
    greedy = pieces(model, "abc", max_tokens=9)[0].text
    assert pieces(model, "abc", max_tokens=9, temperature=3.0, top_k=1)[0].text == greedy
    assert pieces(model, "abc", max_tokens=9, temperature=3.0, top_p=1e-9)[0].text == greedy


def test_a_seed_draws_the_same_beside_others(model):
    options = {"max_tokens": 9, "temperature": 1.5, "top_p": 0.9}
    alone = [pieces(model, "abc", seed=seed, **options)[0].text for seed in range(3)]
    beside = [Decoder(model, "abc", Sampling(seed=seed, **options)) for seed in range(3)]
    while not all(decoder.finish for decoder in beside):
        for decoder in beside:
            if not decoder.finish:
                decoder.step()
    assert [decoder.text for decoder in beside] == alone and len(set(alone)) > 1
