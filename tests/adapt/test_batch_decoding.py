"""BatchDecoder generates the tokens that transformers does, and stops at stop texts."""

from dataclasses import replace

import pytest
import torch
from support import tiny_models
from transformers import AutoModelForCausalLM, Phi3Config

from whet.adapt.decoding.batch_decoding import BatchDecoder
from whet.adapt.decoding.sampling import SamplingParams, SequenceState
from whet.adapt.model import LanguageModel


@pytest.fixture(scope="module", params=[*tiny_models.CONFIGS, *tiny_models.MORE])
def model(request, tmp_path_factory):
    return LanguageModel.from_pretrained(
        tiny_models.save(tmp_path_factory.mktemp("tiny"), request.param)
    )


def pieces(model, prompt, **options):
    continuations = BatchDecoder(model, lambda slots: model.lm_head())
    decoder, texts = SequenceState(model, prompt, SamplingParams(**options)), []
    while not decoder.finish_reason:
        texts.append(continuations.step({0: decoder})[0])
    return decoder, texts


def together(model, arriving):
    """Continue the decoders of `arriving`, lists of those that begin at each step."""
    continuations = BatchDecoder(model, lambda slots: model.lm_head())
    arriving, going, slot = list(arriving), {}, 0
    while arriving or going:
        for decoder in arriving.pop(0) if arriving else ():
            going[slot] = decoder
            slot += 1
        outputs = continuations.step(going)
        assert outputs.keys() == going.keys()
        going = {slot: decoder for slot, decoder in going.items() if not decoder.finish_reason}


def test_greedy_text_is_that_of_transformers(model):
    tokens = model.encode_prompt("abc", 20)
    output = model.hf_model.generate(tokens[None], max_new_tokens=20, do_sample=False)
    goal = model.tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True)
    decoder, texts = pieces(model, "abc", max_tokens=20)
    assert decoder.text == "".join(texts) == goal


def test_a_stop_text_ends_the_continuation_before_it(model):
    whole = pieces(model, "abc", max_tokens=20)[0].text
    stop = whole[4:7]
    decoder, texts = pieces(model, "abc", max_tokens=20, stop=(stop, "never said"))
    assert decoder.text == "".join(texts) == whole[: whole.index(stop)]
    assert decoder.finish_reason == "stop"


def test_a_stop_text_is_held_back_letter_by_letter(model):
    decoder = SequenceState(model, "q", SamplingParams(max_tokens=20, stop=("abé",)))
    texts = [decoder.append(token) for token in model.encode("xabé").tolist()]
    assert "".join(texts) == decoder.text == "x" and decoder.finish_reason == "stop"


def test_an_answer_is_its_own_where_positions_turn_with_the_longest_row():
    config = Phi3Config(
        vocab_size=257, pad_token_id=256, original_max_position_embeddings=16,
        rope_scaling={"type": "longrope", "rope_type": "longrope", "short_factor": [1.0] * 4,
                      "long_factor": [4.0] * 4}, **tiny_models.SIZES,
    )  # fmt: skip
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    model = LanguageModel(network, tiny_models.tokenizer(), "longrope")
    assert model.longrope_switch == 16 and (model.padded_length(15), model.padded_length(17)) == (
        16,
        32,
    )
    test_greedy_text_is_that_of_transformers(model)  # beyond the turn
    alone = pieces(model, "abc", max_tokens=6)[0].text
    short, long = (
        SequenceState(model, text, SamplingParams(max_tokens=6)) for text in ("abc", "a" * 20)
    )
    together(model, [[short, long]])
    assert short.text == alone


def test_one_likeliest_token_is_greedy_at_any_temperature(model):
    greedy = pieces(model, "abc", max_tokens=9)[0].text
    assert pieces(model, "abc", max_tokens=9, temperature=3.0, top_k=1)[0].text == greedy
    assert pieces(model, "abc", max_tokens=9, temperature=3.0, top_p=1e-9)[0].text == greedy


def test_a_seed_draws_the_same_alongside_others(model):
    options = {"max_tokens": 9, "temperature": 1.5, "top_p": 0.9}
    alone = [pieces(model, "abc", seed=seed, **options)[0].text for seed in range(3)]
    batched = [
        SequenceState(model, "abc", SamplingParams(seed=seed, **options)) for seed in range(3)
    ]
    together(model, [batched])
    assert [decoder.text for decoder in batched] == alone and len(set(alone)) > 1


def test_continuations_of_any_length_come_and_go(model):
    asked = [("abc", 20), ("a", 3), ("a longer prompt", 9), ("b", 25), ("abcdefgh", 1), ("c", 12)]
    alone = [pieces(model, prompt, max_tokens=most)[0] for prompt, most in asked]
    read = []
    handle = model.hf_model.base_model.register_forward_pre_hook(
        lambda _, args, given: read.append(len(given["input_ids"])), with_kwargs=True
    )
    batched = [
        SequenceState(model, prompt, SamplingParams(max_tokens=most)) for prompt, most in asked
    ]
    together(model, [batched[:3], [], batched[3:5], [], [], [], batched[5:]])
    handle.remove()
    assert [(d.text, d.finish_reason) for d in batched] == [
        (d.text, d.finish_reason) for d in alone
    ]
    assert sum(read) == sum(len(decoder.token_ids) for decoder in batched) and max(read) == 4


def test_a_dropped_sequence_is_forgotten(model):
    continuations = BatchDecoder(model, lambda slots: model.lm_head())
    short, long = (SequenceState(model, "a" * n, SamplingParams(max_tokens=9)) for n in (2, 12))
    goal = pieces(model, "aa", max_tokens=9)[0].text
    continuations.step({0: short, 1: long})
    other = SequenceState(model, "abc", SamplingParams(max_tokens=9))
    continuations.step({0: short, 1: other})  # another prompt in the second slot
    while not short.finish_reason:
        continuations.step({0: short})
    assert short.text == goal and len(other.token_ids) == 1


def test_logits_that_are_not_finite_fail_their_own_sequence(model):
    decoders = {
        slot: SequenceState(model, "abc", SamplingParams(max_tokens=9)) for slot in range(3)
    }
    goal = pieces(model, "abc", max_tokens=9)[0].text

    def use(slots):
        output = model.lm_head()
        weights = output.weight.repeat(len(slots), 1, 1)
        if 1 in slots:
            weights[slots.index(1)] = torch.nan
        return replace(output, weight=weights)

    continuations = BatchDecoder(model, use)
    outputs = continuations.step(decoders)
    assert "not finite at generated token 1" in str(outputs[1]) and isinstance(outputs[0], str)
    while not decoders[0].finish_reason:
        continuations.step({0: decoders[0], 2: decoders[2]})
    assert decoders[0].text == decoders[2].text == goal
