"""Many prompts through one engine: each as if it were alone."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from support import reference_slot
from support.engines import ADAPTERS, TEXT, name, query, space_of, words

import whet
from whet.adapt.config import LMHead
from whet.data.documents import Document
from whet.engine import Engine, Request, SamplingParams, TrainingConfig, TrainStep
from whet.select.config import SelectionConfig
from whet.space.retrieve import Retrieval


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return space_of(tmp_path_factory.mktemp("space") / "space")


@pytest.fixture(scope="module")
def model(llama):
    return llama


@pytest.fixture
def engine(space, model):
    return Engine(space, model, ADAPTERS[0], options=SelectionConfig(n=4, k=10), slots=3)


@pytest.mark.parametrize("mode", ADAPTERS, ids=name)
def test_an_answer_is_the_oracle_s(space, model, mode):
    engine = Engine(space, model, mode, options=SelectionConfig(n=4, k=10))
    queries = [query(i, text=TEXT, score_at=(2,)) for i in range(5)]
    answers = list(engine.run(queries))
    for asked, answer in zip(queries, answers, strict=True):
        documents = engine.select(asked.prompt).documents
        bits = {0: model.score(TEXT, context=asked.prompt).bits}
        with reference_slot.adapted(model, mode) as slot:
            losses = []
            for number, document in enumerate(documents, start=1):
                losses.append(slot.step(document.text))
                bits[number] = slot.score(TEXT, context=asked.prompt).bits
        assert [step.loss for step in answer.trace] == pytest.approx(losses, rel=1e-4)
        assert [step.id for step in answer.trace] == [d.id for d in documents]
        assert {at: score.bits for at, score in answer.scores.items()} == pytest.approx(
            {at: bits[at] for at in (0, 2, 4)}, rel=1e-4
        )


def test_an_answer_depends_on_neither_order_nor_mates(engine):
    """Bit for bit, and the same in one slot's turn or another's."""
    queries = [query(i, text=TEXT, n=1 + i % 4) for i in range(7)]
    runs = [list(engine.run(order)) for order in (queries, queries[::-1], queries[3:])]
    found = [{a.query.prompt: (a.scores, [s.loss for s in a.trace.steps]) for a in r} for r in runs]
    assert found[0] == found[1] and found[2].items() <= found[0].items()


def test_the_model_is_as_it_was_when_the_answer_is_there(engine, model):
    before = model.score(TEXT)
    for i in range(3):
        engine.generate(words(i), max_tokens=3)
        assert model.score(TEXT) == before
        with model.exclusive():
            pass


def test_one_engine_serves_many_threads(engine):
    prompts = [words(100 + i, 2) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: engine.generate(prompt, max_tokens=4), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert engine.generate(prompt, max_tokens=4).text == answer.text


def test_greedy_text_is_the_oracle_s(engine, model, space):
    prompt = words(100, 2)
    answer = engine.generate(prompt, max_tokens=12)
    with reference_slot.adapted(model, ADAPTERS[0]) as slot:
        for document in engine.select(prompt).documents:
            slot.step(document.text)
        tokens = model.fitting(prompt, 12)
        output = model.network.generate(tokens[None], max_new_tokens=12, do_sample=False)
    assert answer.text == model.tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True)


@pytest.mark.parametrize("mode", ADAPTERS[:2], ids=name)
def test_answers_are_continued_together_each_by_its_own_weights(space, model, mode):
    queries = [query(i, n=1 + i % 3, sampling=SamplingParams(max_tokens=4 + i)) for i in range(6)]
    engines = [Engine(space, model, mode, options=SelectionConfig(k=10), slots=n) for n in (3, 1)]
    read = []
    hook = model.network.base_model.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].shape), with_kwargs=True
    )
    beside, alone = ([answer.text for answer in engine.run(queries)] for engine in engines)
    hook.remove()
    assert beside == alone
    assert sum(columns == 1 and rows > 1 for rows, columns in read) > 4


def test_a_stream_tells_picks_steps_and_text(engine):
    *events, answer = engine.stream(query(1, sampling=SamplingParams(max_tokens=9)))
    picks, steps = events[0], [event for event in events if isinstance(event, TrainStep)]
    assert isinstance(picks, Retrieval) and picks.rows.tolist() == answer.retrieval.rows.tolist()
    assert tuple(steps) == answer.trace.steps
    assert "".join(event for event in events if isinstance(event, str)) == answer.text


def test_adaptive_stop_is_planned_before_training(engine):
    answer = engine.submit(query(2, text=TEXT, alpha=9.0)).result()
    assert answer.trace.stop_reason == "alpha" and len(answer.trace) < 4
    assert len(answer.retrieval) == len(answer.trace)


def test_a_deadline_gives_fewer_steps_and_none_the_base_model(engine, model):
    answer = engine.submit(query(3, text=TEXT, deadline_s=0.0)).result()
    assert answer.trace.stop_reason == "deadline" and len(answer.trace) == 0
    assert answer.score == answer.base == model.score(TEXT, context=answer.query.prompt)


def test_a_query_may_ask_for_the_base_model(engine, model):
    answer = engine.submit(query(3, adapt=False, sampling=SamplingParams(max_tokens=5))).result()
    assert answer.text == model.generate(answer.query.prompt, max_tokens=5)
    assert not answer.trace.steps and answer.retrieval is None
    for no_steps in ({"n": 0}, {"n": 0, "documents": (Document("a", "one text", {}),)}):
        scored = engine.submit(query(3, text=TEXT, **no_steps)).result()
        assert scored.scores == {0: model.score(TEXT, context=scored.query.prompt)}


def test_documents_may_be_given(model):
    engine = Engine(None, model, ADAPTERS[0])
    given = tuple(Document(f"g{i}", words(i), {}) for i in range(3))
    answer = engine.submit(query(1, text=TEXT, documents=given)).result()
    assert [(step.id, step.sigma) for step in answer.trace] == [(f"g{i}", None) for i in range(3)]
    with pytest.raises(ValueError, match="no data space"):
        engine.select("a prompt")


def test_what_was_learned_can_be_kept_and_begun_with(engine):
    first = engine.submit(query(1, text=TEXT, keep=True)).result()
    again = engine.submit(query(1, text=TEXT, adapt=False, adapter=first.adapter)).result()
    assert again.base == first.score != first.base and again.adapter is None


def test_an_adapter_of_another_form_fails_its_prompt_alone(space, model, engine):
    adapter = engine.submit(query(1, text=TEXT, keep=True)).result().adapter
    head = Engine(space, model, LMHead(), options=SelectionConfig(n=1, k=5), slots=2)
    with pytest.raises(ValueError, match="slots learn by Head: expected LoRA"):
        head.submit(query(1, text=TEXT, adapter=adapter)).result()
    assert head.submit(query(2, text=TEXT)).result().score


def test_a_long_queue_is_answered_in_full_and_in_order(engine):
    asked = [query(i, text=TEXT, n=40 if i % 8 == 0 else 1) for i in range(40)]
    assert [(a.query, len(a.trace)) for a in engine.run(asked)] == [(q, q.n) for q in asked]


def test_a_run_takes_plain_texts_and_reads_no_further_ahead_than_its_queue(space, model):
    engine = Engine(
        space, model, ADAPTERS[0], options=SelectionConfig(n=1, k=5), slots=2, waiting=3
    )
    prompts, read = [words(100 + i, 2) for i in range(20)], []
    asked = (read.append(prompt) or prompt for prompt in prompts)
    for i, answer in enumerate(engine.run(asked)):
        assert answer.query == Request(prompts[i]) and len(read) <= i + 5
    with pytest.raises(ValueError, match="queries is the text 'alpha'"):
        next(engine.run("alpha"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no niceness of its own")
@pytest.mark.parametrize("niceness", [10, 0])
def test_an_engine_gives_way_as_far_as_told(space, model, niceness):
    own, seen = os.getpriority(os.PRIO_PROCESS, 0), set()
    engine = Engine(space, model, ADAPTERS[0], options=SelectionConfig(n=2, k=5), niceness=niceness)
    engine.submit(
        query(1, text=TEXT), lambda event: seen.add(os.getpriority(os.PRIO_PROCESS, 0))
    ).result()
    assert seen == ({max(own, niceness)} if niceness else {own})
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


@pytest.mark.parametrize(
    "training, steps",
    [
        (TrainingConfig(order="reversed"), ["c", "b", "b", "b", "a"]),
        (TrainingConfig(order="length"), ["b", "b", "b", "a", "c"]),
        (TrainingConfig(batch_size=2), ["a", "b", "b", "b", "c"]),
        (TrainingConfig(gradient_reuse=2), ["a", "b", "b", "b", "c"]),
        (TrainingConfig(long_texts="chunks"), ["a", "b", "b", "b", "c", "c"]),
        (TrainingConfig(long_texts="random"), ["a", "b", "b", "b", "c"]),
    ],
    ids=repr,
)
def test_texts_become_steps_as_told(model, training, steps):
    texts = {"a": "alpha beta", "b": "gamma", "c": "kappa " * 8}
    given = tuple(Document(i, texts[i], {}) for i in "abbbc")
    engine = Engine(None, model, ADAPTERS[0], training=training)
    first, again = (engine.submit(query(1, text=TEXT, documents=given)).result() for _ in range(2))
    assert [step.id for step in first.trace.steps] == steps
    assert first.scores == again.scores and first.score.bits != first.base.bits


def test_a_reused_gradient_is_not_computed_again(model):
    given = (Document("a", "one text", {}),) * 4
    engine = Engine(None, model, ADAPTERS[0], training=TrainingConfig(gradient_reuse=2))
    losses = [
        step.loss for step in engine.submit(query(1, text=TEXT, documents=given)).result().trace
    ]
    assert losses[0] == losses[1] > losses[2] == losses[3]


def test_carried_state_makes_a_second_answer_another(model):
    given = (Document("a", "one text", {}),) * 4
    asked = query(1, text=TEXT, documents=given)
    carrying = Engine(
        None, model, ADAPTERS[0], training=TrainingConfig(persist_optimizer=True), slots=1
    )
    first, second = (carrying.submit(asked).result().score for _ in range(2))
    fresh = Engine(None, model, ADAPTERS[0], slots=1)
    assert first == fresh.submit(asked).result().score != second


def test_answers_and_engines_are_shown_in_one_short_line(engine):
    answer = engine.generate("alpha", max_tokens=20)
    assert repr(answer) == f"Answer({answer.text!r}, 4 steps, length)"
    assert len(repr(replace(answer, text="x" * 1000))) < 80
    assert "n=4, 3 slots)" in repr(engine) and "LoRA(lr=0.01" in repr(engine)


def test_the_simple_calls_are_at_the_door(space, model):
    assert whet.Engine is Engine
    engine = Engine(space, model, options=SelectionConfig(n=1, k=5))
    start = time.perf_counter()
    seconds = engine.score(TEXT, prompt=words(1)).seconds
    assert set(seconds) == {"queue", "select", "train", "answer"}
    assert sum(seconds.values()) <= time.perf_counter() - start
