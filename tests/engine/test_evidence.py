"""Whether the steps helped, by the end of the prompt, against training from scratch."""

import json
import math

import pytest
import torch
from support import reference_slot, tiny_models
from support.engines import TEXT, picking, words

import whet
from whet.adapt.decoding.sampling import TextPiece
from whet.adapt.evidence import EvidenceCheck, HeldBack
from whet.adapt.model import LanguageModel
from whet.adapt.session import adapted
from whet.adapt.updates import plan_updates
from whet.data.documents import Document
from whet.engine import Engine, Request, SamplingParams, TrainingConfig
from whet.select.config import SelectionConfig

LORA = whet.LoRA(lr=0.01, r=4)
PROMPT = words(7, 28)  # long enough that its end can be held back
NEAR = [Document(f"near{i}", words(i, 6)) for i in range(4)]
FAR = [Document(f"far{i}", "QZ!?" * (6 + i)) for i in range(4)]
WORSE = [Document(f"x{i}", "X" * (30 + i)) for i in range(2)]  # than the base model from the start
HELPFUL, MIXED, HARMFUL = NEAR, NEAR[:2] + FAR, FAR


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_models.save(tmp_path_factory.mktemp("long"), "llama")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 256}))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """In float64, where sums of another order give the same numbers; with a longer context."""
    return LanguageModel.from_pretrained(folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def trained(folder):
    """A model that writes words, to which other texts do more harm than 5 %."""
    model = LanguageModel.from_pretrained(folder, device="cpu", dtype=torch.float64)
    optimizer = torch.optim.Adam(model.hf_model.parameters(), lr=3e-3)
    for seed in range(100, 106):
        tokens = model.training_tokens(words(seed, 28))[None]
        model.hf_model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model


def from_scratch(model, documents, text=None, context=None):
    """Bits per byte after the steps on `documents`, of the held-back part unless of `text`."""
    with reference_slot.adapted(model, LORA) as slot:
        for document in documents:
            slot.step(document.text)
        if text is None:
            context, text = held_back(model, PROMPT)
        return slot.score(text, context=context).bits_per_byte


def held_back(model, prompt):
    """What comes before the last quarter of the prompt, and that quarter."""
    part = HeldBack.of(model.encode(prompt), model)
    first = len(part.tokens) - part.num_scored
    return tuple(model.tokenizer.decode(t) for t in (part.tokens[:first], part.tokens[first:]))


def engine_of(model, evidence="check", space=None, **options):
    training = TrainingConfig(evidence=evidence, learned_ratio=0.0)
    return Engine(space, model, LORA, training=training, **options)


def output_of(model, documents, evidence="check", **options):
    with engine_of(model, evidence, slots=3) as engine:
        sampling = SamplingParams(max_tokens=6)
        request = Request(PROMPT, documents=tuple(documents), sampling=sampling, **options)
        return engine.submit(request).result()


def test_the_end_of_the_prompt_is_held_back(model):
    context, text = held_back(model, PROMPT)
    assert context + text == PROMPT
    assert len(model.encode(text)) == len(model.encode(PROMPT)) // 4
    long = HeldBack.of(model.encode("x" * 9000), model)
    assert (len(long.tokens), long.num_scored) == (1024, 256)
    short = (HeldBack.of(model.encode(prompt), model) for prompt in ("a b c d", ""))
    assert list(short) == [None, None]


@pytest.mark.parametrize(
    "mode, documents, kept",
    [
        ("off", HARMFUL, 4), ("measure", HARMFUL, 4), ("check", HELPFUL, 4), ("check", HARMFUL, 0),
        ("best", MIXED, 2), ("best", HARMFUL, 2), ("best", WORSE, 0),
    ],
)  # fmt: skip
def test_the_answer_has_the_steps_that_the_evidence_speaks_for(
    model, trained, mode, documents, kept
):
    n = len(documents)
    model = trained if mode == "check" and documents is HARMFUL else model
    output = output_of(model, documents, mode, text=TEXT)
    checked = {"off": [], "measure": [0, n], "check": [0, n]}
    checked = checked.get(mode, sorted({0, 2, n} | ({5} if n > 5 else set())))
    expected = {steps: from_scratch(model, documents[:steps]) for steps in checked}
    evidence = output.evidence
    assert evidence.bits_per_byte == pytest.approx(expected, rel=1e-5)
    if mode == "best":
        assert kept == min(expected, key=expected.get)
    assert evidence.num_steps == kept
    assert output.trace.stop_reason == ("n" if kept == n else "evidence")
    bits = from_scratch(model, documents[:kept], TEXT, PROMPT)
    assert output.score.bits_per_byte == pytest.approx(bits, rel=1e-5)
    assert dict(evidence.passages) == {d.id: documents.count(d) for d in documents}


def test_steps_that_cost_less_than_two_percent_are_not_undone(model):
    output = output_of(model, HARMFUL, "check", text=TEXT)
    assert 1 < output.evidence.after / output.evidence.before <= 1.02
    assert output.evidence.num_steps == 4 and output.score != output.base


@pytest.mark.parametrize("is_copy, kept", [(False, 0), (True, 5)])
def test_fewer_steps_on_a_copy_are_kept_where_all_do_harm(trained, is_copy, kept):
    documents = [Document("prompt", PROMPT)] * 5 + 2 * FAR
    training = TrainingConfig(learned_ratio=0.0)
    updates, adapter = plan_updates(documents, trained, training), whet.LoRA(lr=2e-3, r=4)
    with adapted(trained, adapter, training=training) as session:
        evidence = EvidenceCheck(session, PROMPT, is_copy=is_copy)
        evidence.before_first()
        session.train(updates, after_update=lambda update, number: evidence.after_update(number))
        assert evidence.finish(len(updates)) == kept
        score = session.score(TEXT, context=PROMPT)
    bits = evidence.bits_per_byte
    assert bits[len(updates)] > 1.05 * bits[0] and kept == min(bits, key=bits.get)
    with adapted(trained, adapter, training=training) as session:
        session.train(updates[:kept])
        assert session.score(TEXT, context=PROMPT) == score


def test_intermediate_steps_are_measured_where_there_is_a_copy(trained, tmp_path):
    documents = [Document("copy", PROMPT.upper()), *NEAR, *FAR]  # compared without case
    space = whet.DataSpace.build(documents, tmp_path / "copy.whet", chunks="whole")
    for overlap, measured in ((0.5, [0, 2, 5, 10, 20]), (0.0, [0, 20])):
        selection = SelectionConfig(n=20, copy_overlap=overlap)
        with engine_of(trained, space=space, selection=selection) as engine:
            output = engine.submit(Request(PROMPT, text=TEXT)).result()
        assert list(output.evidence.bits_per_byte) == measured


def test_undone_steps_leave_the_base_model(trained):
    events = []
    sampling = SamplingParams(max_tokens=6, num_sequences=2)
    with engine_of(trained) as engine:
        request = Request(PROMPT, documents=tuple(HARMFUL), sampling=sampling, return_adapter=True)
        output = engine.submit(request, events.append).result()
    assert output.text == trained.generate(PROMPT, max_tokens=6)
    pieces = [event for event in events if isinstance(event, TextPiece)]
    assert ["".join(p for p in pieces if p.sequence == i) for i in (0, 1)] == [output.text] * 2
    assert "so the steps were undone" in str(output.evidence)
    assert output.evidence.after > output.evidence.before
    again = output_of(trained, (), init_adapter=output.adapter, text=TEXT)
    assert again.score.bits == pytest.approx(trained.score(TEXT, context=PROMPT).bits)


def test_weights_that_are_not_finite_are_undone(model):
    adapter = whet.LoRA(lr=1e200, r=4)
    with Engine(None, model, adapter, training=TrainingConfig(evidence="check")) as engine:
        request = Request(PROMPT, documents=tuple(NEAR[:1]), sampling=SamplingParams(max_tokens=6))
        output = engine.submit(request).result()
    assert output.evidence.after == math.inf and output.trace.stop_reason == "evidence"
    assert output.text == model.generate(PROMPT, max_tokens=6)


def test_the_prompt_is_read_once_after_the_steps(model):
    read, length = [], len(model.encode_prompt(PROMPT, 6))
    hook = model.hf_model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    output = output_of(model, NEAR[:2], "measure")
    hook.remove()
    assert output.evidence.after is not None
    assert [count for count in read if count >= length - 1] == [length - 1, length]


def test_undone_steps_leave_the_adapter_that_training_started_from(trained):
    first = output_of(trained, NEAR[:2], return_adapter=True).adapter
    output = output_of(trained, HARMFUL, init_adapter=first, text=TEXT)
    assert output.trace.stop_reason == "evidence" and output.score == output.base
    assert output.base != trained.score(TEXT, context=PROMPT)


def test_batch_mates_do_not_change_the_evidence(model):
    sampling = SamplingParams(max_tokens=2)
    requests = [
        Request(
            words(40 + i, 24),
            text=TEXT if i % 2 else None,
            documents=tuple(documents),
            sampling=sampling,
        )
        for i, documents in enumerate([HELPFUL, MIXED, HARMFUL, MIXED])
    ]
    with engine_of(model, "best", slots=3) as engine:
        together = list(engine.generate_many(requests))
        alone = [engine.submit(request).result() for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert one.evidence.bits_per_byte == other.evidence.bits_per_byte
        assert one.scores == other.scores and one.evidence.num_steps == other.evidence.num_steps
    assert len({output.evidence.num_steps for output in alone}) > 1


def test_a_short_prompt_and_no_steps_are_not_measured(space, model):
    with engine_of(model, space=space, selection=picking(3)) as engine:
        output = engine.submit(Request("alpha beta", text=TEXT)).result()
        assert output.evidence.bits_per_byte == {} and output.evidence.num_steps == 3
        assert "not measured" in str(output.evidence)
        assert output.evidence.sigma == output.trace.steps[-1].sigma
        for options in ({"deadline_s": 0.0}, {"adapt": False}, {"selection": picking(0)}):
            output = engine.submit(Request(PROMPT, text=TEXT, **options)).result()
            assert output.evidence.bits_per_byte == {} and output.score == output.base
            assert str(output.evidence).startswith("base model, nothing was trained on")


def test_a_snapshot_restores_the_weights_bit_for_bit(model):
    with adapted(model, whet.FullFineTuning(lr=1e-2)) as session:
        base = session.score(TEXT)
        session.step("alpha beta")
        snapshot, after = session.snapshot(), session.score(TEXT)
        session.step("gamma delta")
        assert session.score(TEXT) != after
        session.restore(snapshot)
        assert session.score(TEXT) == after
        session.restore(None)
        assert session.score(TEXT) == base
