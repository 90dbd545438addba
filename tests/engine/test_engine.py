"""Many requests through one engine: each as if it were alone."""

import asyncio
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from support import reference_slot
from support.engines import ADAPTERS, LORA, TEXT, name, picking, request, words

import whet
from whet.adapt.config import LMHead
from whet.data.documents import Document
from whet.engine import Engine, Request, SamplingParams, TrainingConfig, TrainStep
from whet.select.config import SelectionConfig
from whet.space.retrieve import Retrieval


@pytest.mark.parametrize("adapter", ADAPTERS, ids=name)
def test_an_output_equals_the_reference(space, model, adapter):
    engine = Engine(space, model, adapter, selection=picking(4))
    requests = [request(i, text=TEXT, eval_steps=(2,)) for i in range(5)]
    outputs = list(engine.generate_many(requests))
    for asked, output in zip(requests, outputs, strict=True):
        documents = engine.retrieve(asked.prompt).documents
        bits = {0: model.score(TEXT, context=asked.prompt).bits}
        with reference_slot.adapted(model, adapter) as slot:
            losses = []
            for number, document in enumerate(documents, start=1):
                losses.append(slot.step(document.text))
                bits[number] = slot.score(TEXT, context=asked.prompt).bits
        assert [step.loss for step in output.trace] == pytest.approx(losses, rel=1e-4)
        assert [step.id for step in output.trace] == [d.id for d in documents]
        assert {at: score.bits for at, score in output.scores.items()} == pytest.approx(
            {at: bits[at] for at in (0, 2, 4)}, rel=1e-4
        )


def test_an_output_does_not_depend_on_order_or_batch_mates(engine):
    """Bit for bit, and the same in one slot's turn or another's."""
    requests = [request(i, text=TEXT, selection=picking(1 + i % 4)) for i in range(7)]
    runs = [list(engine.generate_many(order)) for order in (requests, requests[::-1], requests[3:])]
    found = [
        {a.request.prompt: (a.scores, [s.loss for s in a.trace.steps]) for a in r} for r in runs
    ]
    assert found[0] == found[1] and found[2].items() <= found[0].items()


def test_the_model_is_restored_before_the_output_is_returned(engine, model):
    before = model.score(TEXT)
    for i in range(3):
        engine.generate(words(i), max_tokens=3)
        assert model.score(TEXT) == before
        with model.exclusive():
            pass


def test_one_engine_can_be_used_from_many_threads(engine):
    prompts = [words(100 + i, 2) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda prompt: engine.generate(prompt, max_tokens=4), prompts))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert engine.generate(prompt, max_tokens=4).text == output.text


def test_greedy_text_equals_the_reference(engine, model, space):
    prompt = words(100, 2)
    output = engine.generate(prompt, max_tokens=12)
    with reference_slot.adapted(model, LORA) as slot:
        for document in engine.retrieve(prompt).documents:
            slot.step(document.text)
        tokens = model.encode_prompt(prompt, 12)
        generated = model.hf_model.generate(tokens[None], max_new_tokens=12, do_sample=False)
    assert output.text == model.tokenizer.decode(
        generated[0, len(tokens) :], skip_special_tokens=True
    )


@pytest.mark.parametrize("adapter", ADAPTERS[:2], ids=name)
def test_sequences_are_decoded_together_each_with_its_own_weights(space, model, adapter):
    requests = [
        request(i, selection=picking(1 + i % 3), sampling=SamplingParams(max_tokens=4 + i))
        for i in range(6)
    ]
    engines = [Engine(space, model, adapter, selection=picking(50), slots=n) for n in (3, 1)]
    read = []
    hook = model.hf_model.base_model.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].shape), with_kwargs=True
    )
    together, alone = (
        [output.text for output in engine.generate_many(requests)] for engine in engines
    )
    hook.remove()
    assert together == alone
    assert sum(columns == 1 and rows > 1 for rows, columns in read) > 4


def test_a_stream_yields_retrieval_steps_and_text(engine):
    *events, output = engine.stream(request(1, sampling=SamplingParams(max_tokens=9)))
    picks, steps = events[0], [event for event in events if isinstance(event, TrainStep)]
    assert isinstance(picks, Retrieval) and picks.rows.tolist() == output.retrieval.rows.tolist()
    assert tuple(steps) == output.trace.steps
    assert "".join(event for event in events if isinstance(event, str)) == output.text


def test_adaptive_stopping_is_decided_before_training(engine):
    output = engine.submit(request(2, text=TEXT, selection=picking(4, stop_alpha=9.0))).result()
    assert output.trace.stop_reason == "alpha" and len(output.trace) < 4
    assert len(output.retrieval) == len(output.trace)


def test_a_handle_can_be_awaited_and_a_timeout_leaves_the_request(engine):
    async def outputs():
        slow = engine.submit(request(2, text=TEXT))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow, 0)
        return await slow, slow

    output, handle = asyncio.run(outputs())
    assert output is handle.result() and repr(handle).endswith(", finished)")


def test_a_deadline_of_zero_gives_the_base_model(engine, model):
    output = engine.submit(request(3, text=TEXT, deadline_s=0.0)).result()
    assert output.trace.stop_reason == "deadline" and len(output.trace) == 0
    assert output.score == output.base == model.score(TEXT, context=output.request.prompt)


def test_a_request_can_use_the_base_model(engine, model):
    output = engine.submit(request(3, adapt=False, sampling=SamplingParams(max_tokens=5))).result()
    assert output.text == model.generate(output.request.prompt, max_tokens=5)
    assert not output.trace.steps and output.retrieval is None
    for no_steps in (
        {"selection": picking(0)},
        {"selection": picking(0), "documents": (Document("a", "one text", {}),)},
    ):
        scored = engine.submit(request(3, text=TEXT, **no_steps)).result()
        assert scored.scores == {0: model.score(TEXT, context=scored.request.prompt)}


def test_a_request_can_bring_its_documents(model):
    engine = Engine(None, model, LORA)
    given = tuple(Document(f"g{i}", words(i), {}) for i in range(3))
    output = engine.submit(request(1, text=TEXT, documents=given)).result()
    assert [(step.id, step.sigma) for step in output.trace] == [(f"g{i}", None) for i in range(3)]
    with pytest.raises(ValueError, match="no data space"):
        engine.retrieve("a prompt")


def test_an_adapter_can_be_returned_and_started_from(engine):
    first = engine.submit(request(1, text=TEXT, return_adapter=True)).result()
    again = engine.submit(request(1, text=TEXT, adapt=False, init_adapter=first.adapter)).result()
    assert again.base == first.score != first.base and again.adapter is None


def test_an_adapter_of_another_kind_fails_its_request_alone(space, model, engine):
    adapter = engine.submit(request(1, text=TEXT, return_adapter=True)).result().adapter
    head = Engine(space, model, LMHead(), selection=SelectionConfig(n=1, k=5), slots=2)
    with pytest.raises(ValueError, match="slots train LMHead: expected LoRA"):
        head.submit(request(1, text=TEXT, init_adapter=adapter)).result()
    assert head.submit(request(2, text=TEXT)).result().score


def test_a_long_queue_is_processed_completely_and_in_order(engine):
    asked = [request(i, text=TEXT, selection=picking(40 if i % 8 == 0 else 1)) for i in range(40)]
    outputs = list(engine.generate_many(asked))
    assert [output.request for output in outputs] == asked
    assert [len(output.trace) for output in outputs] == [a.selection.n for a in asked]


def test_generate_many_takes_texts_and_reads_ahead_by_its_queue(space, model):
    engine = Engine(
        space, model, LORA, selection=SelectionConfig(n=1, k=5), slots=2, max_queue_size=3
    )
    prompts, read = [words(100 + i, 2) for i in range(20)], []
    asked = (read.append(prompt) or prompt for prompt in prompts)
    for i, output in enumerate(engine.generate_many(asked)):
        assert output.request == Request(prompts[i]) and len(read) <= i + 5
    with pytest.raises(ValueError, match="requests is the text 'alpha'"):
        next(engine.generate_many("alpha"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no niceness of its own")
@pytest.mark.parametrize("niceness", [10, 0])
def test_an_engine_sets_the_niceness_of_its_threads(space, model, niceness):
    own, seen = os.getpriority(os.PRIO_PROCESS, 0), set()
    engine = Engine(
        space, model, LORA, selection=SelectionConfig(n=2, k=5), background_niceness=niceness
    )
    engine.submit(
        request(1, text=TEXT), lambda event: seen.add(os.getpriority(os.PRIO_PROCESS, 0))
    ).result()
    assert seen == ({max(own, niceness)} if niceness else {own})
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


@pytest.mark.parametrize(
    "training, steps",
    [
        (TrainingConfig(order="reversed", long_texts="first"), ["c", "b", "b", "b", "a"]),
        (TrainingConfig(order="length", long_texts="first"), ["b", "b", "b", "a", "c"]),
        (TrainingConfig(batch_size=2, long_texts="first"), ["a", "b", "b", "b", "c"]),
        (TrainingConfig(gradient_reuse=2, long_texts="first"), ["a", "b", "b", "b", "c"]),
        (TrainingConfig(long_texts="chunks"), ["a", "b", "b", "b", "c", "c"]),
        (TrainingConfig(long_texts="random"), ["a", "b", "b", "b", "c"]),
    ],
    ids=repr,
)
def test_training_options_arrange_the_steps(model, training, steps):
    texts = {"a": "alpha beta", "b": "gamma", "c": "kappa " * 8}
    given = tuple(Document(i, texts[i], {}) for i in "abbbc")
    engine = Engine(None, model, LORA, training=training)
    first, again = (
        engine.submit(request(1, text=TEXT, documents=given)).result() for _ in range(2)
    )
    assert [step.id for step in first.trace.steps] == steps
    assert first.scores == again.scores and first.score.bits != first.base.bits


def test_a_reused_gradient_is_not_computed_again(model):
    given = (Document("a", "one text", {}),) * 4
    engine = Engine(None, model, LORA, training=TrainingConfig(gradient_reuse=2))
    losses = [
        step.loss for step in engine.submit(request(1, text=TEXT, documents=given)).result().trace
    ]
    assert losses[0] == losses[1] > losses[2] == losses[3]


def test_a_persistent_optimizer_changes_the_second_output(model):
    given = (Document("a", "one text", {}),) * 4
    asked = request(1, text=TEXT, documents=given)
    carrying = Engine(None, model, LORA, training=TrainingConfig(persist_optimizer=True), slots=1)
    first, second = (carrying.submit(asked).result().score for _ in range(2))
    fresh = Engine(None, model, LORA, slots=1)
    assert first == fresh.submit(asked).result().score != second


def test_outputs_and_engines_have_a_short_repr(engine):
    output = engine.generate("alpha", max_tokens=20)
    assert repr(output) == f"Output({output.text!r}, 4 steps, length)"
    assert len(repr(replace(output, text="x" * 1000))) < 80
    assert "n=4, 3 slots)" in repr(engine) and "LoRA(lr=0.01" in repr(engine)


def test_the_stages_of_a_request_are_timed(space, model):
    assert whet.Engine is Engine
    engine = Engine(space, model, selection=SelectionConfig(n=1, k=5))
    start = time.perf_counter()
    seconds = engine.score(TEXT, prompt=words(1)).seconds
    assert set(seconds) == {"queue", "select", "train", "generate"}
    assert sum(seconds.values()) <= time.perf_counter() - start


def test_a_request_can_have_its_own_query_space_selection_and_context(engine, space, model):
    filtered = space.filter('id in ["d1", "d2", "d3"]')
    asked = Request(
        "the prompt",
        query=words(101, 3),
        text=TEXT,
        context="other context",
        space=filtered,
        selection=SelectionConfig(n=2, k=3),
    )
    retrieval = engine.retrieve(asked)
    assert {document.id for document in retrieval.documents} <= {"d1", "d2", "d3"}
    output = engine.submit(asked).result()
    assert output.retrieval.rows.tolist() == retrieval.rows.tolist()
    assert output.base == model.score(TEXT, context="other context")


def test_a_given_retrieval_trains_as_one_made_by_the_engine(engine, space, model):
    asked = request(1, text=TEXT)
    retrieval = engine.retrieve(asked)
    bare = Engine(None, model, LORA, slots=3)
    expected, output = engine.submit(asked).result(), None
    *events, output = bare.stream(replace(asked, retrieval=retrieval))
    assert output.scores == expected.scores and output.retrieval is events[0] is retrieval
    assert output.trace.stop_reason == expected.trace.stop_reason == "n"
    steps = [(step.id, step.sigma, step.loss) for step in output.trace]
    assert steps == [(step.id, step.sigma, step.loss) for step in expected.trace]


def test_the_default_adapter_is_chosen_by_the_model(space, model):
    assert Engine(space, model).adapter == model.adapter_config("auto")
    assert Engine(space, model, "head").adapter == LMHead()


def test_full_fine_tuning_has_one_slot(space, model):
    assert "1 slot)" in repr(Engine(space, model, "full"))
    assert "8 slots)" in repr(Engine(space, model, "lora"))
    with pytest.raises(ValueError, match="slots is 2: expected 1 with full fine-tuning"):
        Engine(space, model, "full", slots=2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda engine: Request("x", keep=True), "'keep' is now called 'return_adapter'"),
        (lambda engine: Request("x", n=3), "'n' is now called 'selection=SelectionConfig.n="),
        (lambda engine: Engine(None, engine.model, options=None), "now called 'selection'"),
        (lambda engine: engine.run([]), "Engine.run is now called generate_many"),
        (lambda engine: engine.generate("alpha", max_tokens=1).finish, "called finish_reason"),
    ],
)
def test_old_names_are_errors_that_give_the_new_name(engine, call, message):
    with pytest.raises((TypeError, AttributeError), match=message):
        call(engine)


@pytest.mark.parametrize("share", [0.0, 1e9])
def test_an_answer_gets_as_many_tokens_per_step_as_its_share_allows(model, share, monkeypatch):
    monkeypatch.setattr("whet.engine.scheduler.DECODING_SHARE", share)
    passes, started, go = [], threading.Event(), threading.Event()

    def note(module, args, kwargs):
        is_token = kwargs["input_ids"].shape[1] == 1
        passes.append("s" if torch.is_grad_enabled() else "t" if is_token else "r")

    def block(event):
        started.set()
        assert go.wait(60)

    hook = model.hf_model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    training = TrainingConfig(learned_ratio=0.0, evidence="off")
    documents = tuple(Document(f"d{i}", words(i)) for i in range(40))
    with Engine(None, model, LORA, slots=2, training=training) as engine:
        one = SamplingParams(max_tokens=1)
        trained = engine.submit(Request("alpha", documents=documents, sampling=one), block)
        assert started.wait(60)
        sampling = SamplingParams(max_tokens=8)
        answer = engine.submit(Request("beta", adapt=False, sampling=sampling))
        go.set()
        outputs = trained.result(60), answer.result(60)
    hook.remove()
    assert [len(output.trace) for output in outputs] == [40, 0]
    expected = "srst" + 6 * "st" + "s" if share == 0 else "sr" + 7 * "t" + "s"
    assert expected in "".join(passes)
