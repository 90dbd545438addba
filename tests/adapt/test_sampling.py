"""Options of sampling: penalties, biases, several sequences, log-probabilities, grammars."""

import json

import pytest
import torch
from support import tiny_models

from whet.adapt.decoding.batch_decoding import BatchDecoder
from whet.adapt.decoding.grammar import GrammarCompiler
from whet.adapt.decoding.sampling import SamplingParams, SequenceGroup, SequenceState
from whet.adapt.model import LanguageModel

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 2}, "age": {"enum": [1, 2]}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def model(llama_folder):
    return LanguageModel.from_pretrained(llama_folder, device="cpu")


def decode(model, *groups):
    """Continue all groups together to their ends; returns the pieces of each sequence."""
    decoder, pieces = BatchDecoder(model, lambda keys: model.lm_head()), {}
    while True:
        going = {
            (slot, i): sequence
            for slot, group in enumerate(groups)
            for i, sequence in enumerate(group.sequences)
            if not sequence.finish_reason
        }
        if not going:
            return pieces
        for key, piece in decoder.step(going).items():
            if isinstance(piece, Exception):
                raise piece
            pieces.setdefault(key, []).append(piece)


def generate(model, prompt="abc", **options):
    group = SequenceGroup(model, prompt, SamplingParams(**{"max_tokens": 9} | options))
    decode(model, group)
    return [sequence.result for sequence in group.sequences]


def test_sequences_of_a_prompt_are_those_of_their_own_seeds(model):
    options = {"temperature": 1.5, "seed": 5}
    alone = [generate(model, temperature=1.5, seed=5 + i)[0].text for i in range(3)]
    reads = []
    handle = model.hf_model.base_model.register_forward_pre_hook(
        lambda _, args, given: reads.append(given["input_ids"].shape), with_kwargs=True
    )
    together = generate(model, **options, num_sequences=3)
    handle.remove()
    assert [text.text for text in together] == alone and len(set(alone)) == 3
    assert reads[0] == (1, 4) and reads[1] == (3, 1)  # the prompt is read once


def test_options_of_one_request_do_not_change_its_batch_mates(model):
    plain = generate(model, temperature=1.0, seed=1)[0]
    groups = [
        SequenceGroup(model, "abc", SamplingParams(max_tokens=9, temperature=1.0, seed=1, **more))
        for more in ({}, {"frequency_penalty": 2.0, "repetition_penalty": 1.5}, {"min_p": 0.5})
    ]
    decode(model, *groups)
    assert groups[0].sequences[0].result == plain


def logits_after(model, adjust, *generated, **options):
    """The logits that a sequence samples from, after it has generated some tokens."""
    sequence = SequenceState(model, "a", SamplingParams(max_tokens=9, **options))
    for token in generated:
        sequence.append(token)
    logits = torch.linspace(-1, 1, model.vocab_size)
    return adjust(logits), sequence.adjusted(logits)


def test_penalties_change_the_logits_as_documented(model):
    [a] = model.encode("a").tolist()
    more = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {3: 2.0}}

    def adjusted(logits):
        logits = logits.clone()
        logits[7] -= 0.5 + 2 * 0.25
        logits[3] += 2
        return logits

    torch.testing.assert_close(*logits_after(model, adjusted, 7, 7, **more))

    def repeated(logits):
        logits = logits.clone()
        for token in (7, 250, a, model.bos_token_id):
            logits[token] = logits[token] / 2 if logits[token] > 0 else logits[token] * 2
        return logits

    torch.testing.assert_close(*logits_after(model, repeated, 7, 250, repetition_penalty=2.0))


def test_bias_and_min_p_decide_the_token(model):
    [b] = model.encode("b").tolist()
    assert generate(model, logit_bias={b: 100.0}, temperature=1.0)[0].text == "b" * 9
    greedy = generate(model)[0].text
    assert generate(model, temperature=5.0, min_p=1.0)[0].text == greedy


def test_logprobs_are_those_of_the_network(model):
    group = SequenceGroup(
        model, "abc", SamplingParams(max_tokens=5, logprobs=2, prompt_logprobs=0, temperature=3.0)
    )
    pieces = decode(model, group)
    [sequence] = group.sequences
    tokens = torch.cat([sequence.prompt, torch.tensor(sequence.token_ids)])
    with torch.no_grad():
        logits = model.hf_model(tokens[None]).logits[0, :, : model.vocab_size]
    expected = logits.float().log_softmax(-1)
    steps = [*sequence.prompt_logprobs, *sequence.result.logprobs]
    assert [step.token_id for step in steps] == tokens[1:].tolist()
    for position, step in enumerate(steps):
        assert step.logprob == pytest.approx(float(expected[position, step.token_id]), abs=1e-5)
        assert (step.token_id, step.logprob) in step.top
    assert steps[-1].top[0][0] == int(expected[-2].argmax()) and len(steps[-1].top) in (2, 3)
    streamed = [step for piece in pieces[0, 0] for step in piece.logprobs]
    assert tuple(streamed) == sequence.result.logprobs


def test_logprobs_end_with_the_text(model):
    text = generate(model, logprobs=0)[0].text
    cut = generate(model, logprobs=0, stop=(text[4:6],))[0]
    assert len(cut.logprobs) == len(cut.text) < cut.num_tokens


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_text_matches_its_schema(model, temperature):
    grammar = GrammarCompiler(model.tokenizer, model.vocab_size, model.eos_token_ids).json_schema(
        PERSON
    )
    texts = generate(
        model, "a", grammar=grammar, max_tokens=30, temperature=temperature, num_sequences=2
    )
    for text in texts:
        value = json.loads(text.text)
        assert text.finish_reason == "stop" and set(value) == {"name", "age"}
        assert len(value["name"]) <= 2 and value["age"] in (1, 2)


@pytest.mark.parametrize(
    "schema", [{"type": "no such"}, {"type": "string", "pattern": "("}, {"$ref": "#/none"},
               {"type": "string", "minLength": 3, "maxLength": 1}],
    ids=str,
)  # fmt: skip
def test_schema_that_cannot_be_compiled_is_an_error(model, schema):
    compiler = GrammarCompiler(model.tokenizer, model.vocab_size, model.eos_token_ids)
    with pytest.raises(ValueError, match="schema cannot be compiled: "):
        compiler.json_schema(schema)


@pytest.mark.parametrize(
    "options",
    [{"min_p": 1.1}, {"repetition_penalty": 0.0}, {"presence_penalty": float("nan")},
     {"logprobs": -1}, {"num_sequences": 0}, {"logit_bias": {1: float("inf")}}],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_rejected(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingParams(**options)


def test_bias_of_a_token_that_the_model_lacks_is_rejected(model):
    with pytest.raises(ValueError, match="logit_bias has token id 257: expected 0 to 256"):
        SequenceGroup(model, "a", SamplingParams(max_tokens=1, logit_bias={257: 1.0}))


def test_bytes_of_tokens_make_up_the_text():
    tokenizer = tiny_models.tokenizer()
    compiler = GrammarCompiler(tokenizer, 257, frozenset({256}))
    ids = tokenizer("é a", add_special_tokens=False).input_ids
    assert b"".join(map(compiler.token_bytes, ids)) == "é a".encode()
    assert compiler.token_bytes(256) == b"<|endoftext|>"
