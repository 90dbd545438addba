"""One prompt by every method, held against the slot step by step and against slow sums."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import eval_fixtures
from support.eval_fixtures import text
from support.hashing_embedder import HashingEmbedder

from whet.adapt.config import FullFineTuning
from whet.adapt.model import LanguageModel
from whet.adapt.session import adapted
from whet.adapt.slots import Slots
from whet.data.documents import Document
from whet.engine.in_context import InContext
from whet.evaluate.config import EvalConfig
from whet.evaluate.contamination import find_contamination, near_duplicates
from whet.evaluate.dataset import Prompt
from whet.evaluate.evaluator import Evaluator
from whet.evaluate.tasks import ScoringTask, Stream
from whet.select.config import SelectionConfig
from whet.space.passages import overlap
from whet.space.retrieve import Retriever
from whet.space.space import DataSpace


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return eval_fixtures.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def model(here):
    return LanguageModel.from_pretrained(here / "model")


def rows(here, model, document, **changes):
    """The rows of one prompt by (method, part, step)."""
    return measured(evaluator(here, model, **changes), document)


def evaluator(here, model, **changes):
    return Evaluator(DataSpace.open(here / "space"), model, eval_fixtures.config(here, **changes))


def measured(evaluator, document):
    record = evaluator.record(Prompt(document, "a"))
    assert "error" not in record, record
    columns = record["rows"]
    whole = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return {(row["method"], row["part"], row["step"]): row for row in whole}


PROMPT = Document("p", text(100), {})


def test_rows_equal_the_slot_step_by_step(here, model):
    space, made = DataSpace.open(here / "space"), rows(here, model, PROMPT)
    texts = {d.id: d.text for d in space.documents(range(len(space)))}
    (task,) = ScoringTask.of(PROMPT.text, eval_fixtures.config(here))
    for method in eval_fixtures.config(here).methods:
        assert made[method, 0, 0]["bits"] == model.score(task.text, context=task.context).bits
        assert made[method, 0, 0]["sigma"] == 1 and made[method, 0, 0]["embed_s"] > 0
        with adapted(model, FullFineTuning(lr=1e-2)) as slot:
            for step in range(1, 5):
                row = made[method, 0, step]
                assert row["loss"] == slot.step(texts[row["document"]])
                assert row["tokens"] == min(len(texts[row["document"]]), model.max_length)
                scored = slot.score(task.text, context=task.context).bits
                assert row["bits"] == (scored if step in (2, 4) else None)
                assert row["base_bits"] == made[method, 0, 0]["bits"]
                assert (row["score_s"] > 0) == (step in (2, 4))


def test_candidates_pass_the_filter_whoever_nominates_them(here, model):
    seen = 'id in ["d1", "d2", "d3", "d4"]'
    for candidates in ("dense", "bm25", "hybrid"):
        method = f"sift(retriever={candidates})"
        made = rows(here, model, PROMPT, methods=(method,), k=3, where=seen)
        assert {made[method, 0, step]["document"] for step in range(1, 5)} <= {
            "d1",
            "d2",
            "d3",
            "d4",
        }


def test_bits_per_byte_are_those_of_a_loop_over_bytes(here, model):
    """The tiny model's tokens are bytes, so its bits can be summed byte by byte."""
    row = rows(here, model, PROMPT, leakage="whole")["sift", 0, 0]
    data, total = PROMPT.text.encode(), 0.0
    ids = [model.bos_token_id, *model.encode(PROMPT.text).tolist()]
    for i in range(1, len(ids)):
        full = (len(data) // model.max_length) * model.max_length
        first = (
            ((i - 1) // model.max_length) * model.max_length
            if i <= full
            else len(data) - model.max_length
        )
        with torch.no_grad():
            logits = model.hf_model(torch.tensor([ids[first:i]])).logits[0, -1, : model.vocab_size]
        total -= math.log2(float(torch.softmax(logits.double(), -1)[ids[i]]))
    assert row["bytes"] == len(data) == len(ids) - 1
    assert row["bits"] == pytest.approx(total, rel=1e-5)


def test_multiplicity_counts_the_steps_on_a_document(here, model):
    made = rows(here, model, PROMPT, methods=("nearest-repeated", "nearest"))
    assert [made["nearest-repeated", 0, s]["multiplicity"] for s in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert [made["nearest", 0, s]["multiplicity"] for s in (1, 2, 3, 4)] == [1, 1, 1, 1]


def picks(made, method):
    return [made[method, 0, step]["document"] for step in (1, 2, 3, 4)]


def test_the_order_of_the_steps_is_a_switch_of_a_method(here, model):
    orders = [f"nearest(order={order})" for order in ("reversed", "shuffled", "length")]
    made = rows(here, model, PROMPT, methods=("nearest", *orders))
    straight = picks(made, "nearest")
    assert picks(made, orders[0]) == straight[::-1]
    assert sorted(picks(made, orders[1])) == sorted(straight)
    lengths = [len(text(int(name[1:]))) for name in picks(made, orders[2])]
    assert lengths == sorted(lengths) and sorted(picks(made, orders[2])) == sorted(straight)


def test_the_sign_of_the_candidates_is_a_switch_of_a_method(here, model):
    space, methods = (
        DataSpace.open(here / "space"),
        ("sift", "sift(metric=cosine)", "nearest(metric=abs_cosine)"),
    )
    made = rows(here, model, PROMPT, methods=methods)
    (task,) = ScoringTask.of(PROMPT.text, eval_fixtures.config(here))
    for method, selector, metric in zip(
        methods, ("sift", "sift", "nearest"), ("auto", "cosine", "abs_cosine"), strict=True
    ):
        retriever = Retriever(space, SelectionConfig(selector=selector, k=10, metric=metric))
        documents = retriever.select(task.query, 4).documents
        assert picks(made, method) == [document.id for document in documents]


def test_adaptive_stopping_keeps_what_it_reached(here, model):
    name = "sift(stop_alpha=0.9)"
    made = rows(here, model, PROMPT, methods=(name, "sift"), eval_steps=(0, 1, 2, 3))
    sigma = [made["sift", 0, step]["sigma"] for step in range(5)]
    taken = next((m - 1 for m in range(1, 5) if sigma[m] > 1 / (0.9 * m)), 4)
    assert 0 < taken < 4
    assert made[name, 0, 4]["bits"] == made["sift", 0, taken]["bits"]
    assert made[name, 0, 4]["document"] is None and made[name, 0, 4]["train_s"] == 0


def test_dynamic_evaluation_trains_on_the_query(here, model):
    made = rows(here, model, PROMPT, methods=("dynamic",))
    (task,) = ScoringTask.of(PROMPT.text, eval_fixtures.config(here))
    with adapted(model, FullFineTuning(lr=1e-2)) as slot:
        losses = [slot.step(task.query) for _ in range(4)]
        assert made["dynamic", 0, 4]["bits"] == slot.score(task.text, context=task.context).bits
    assert [made["dynamic", 0, step]["loss"] for step in (1, 2, 3, 4)] == losses
    assert made["dynamic", 0, 1]["sigma"] is None


def test_random_draws_differ_by_prompt_and_come_again(here, model):
    other = Document("q", PROMPT.text, {})
    once, again, another = (
        picks(rows(here, model, document, methods=("random",)), "random")
        for document in (PROMPT, PROMPT, other)
    )
    assert once == again and once != another


def test_near_duplicates_are_dropped_when_asked(here, model):
    document = Document("p", text(3), {})  # is in the data space
    methods = ("nearest", "nearest(duplicates=drop)")
    made = rows(here, model, document, methods=methods)
    assert "d3" in picks(made, methods[0]) and "d3" not in picks(made, methods[1])


def test_the_same_words_in_another_order_are_no_near_duplicate(tmp_path, model):
    """The embedding is that of the prompt, but they share no 13-gram."""
    words, rng = text(400, 24).split(), np.random.default_rng(0)
    turned = Document("turned", " ".join(rng.permutation(words)), {})
    folder = eval_fixtures.build(tmp_path / "world", extra=[turned])
    prompt, methods = Document("p", " ".join(words), {}), ("sift", "sift(duplicates=drop)")
    made = rows(folder, model, prompt, methods=methods)
    assert "turned" in picks(made, "sift") and "turned" in picks(made, methods[1])
    record = evaluator(folder, model, methods=("sift",)).record(Prompt(prompt, "a"))
    assert record["cosine"] > 0.99 and record["overlap"] == 0 and not record["near"]


def slow_overlap(text, others):
    words, size = text.lower().split(), min(13, len(text.split()))
    grams = {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}
    found = {
        g for g in grams if any(f" {g} " in f" {' '.join(o.lower().split())} " for o in others)
    }
    return len(found) / len(grams)


@given(seed=st.integers(0, 2**20), words=st.integers(1, 60), others=st.integers(0, 3))
def test_overlap_is_that_of_slow_searches(seed, words, others):
    rng = np.random.default_rng(seed)
    prompt = " ".join(rng.choice(["Aa", "b", "c"], words))
    made = []
    for _ in range(others):  # pieces of the prompt among other words
        start, stop = sorted(rng.integers(0, len(prompt) + 1, 2))
        made.append(f"b {prompt[start:stop].upper()} c {'x ' * 3}")
    assert overlap(prompt, made) == pytest.approx(slow_overlap(prompt, made))


def test_passages_of_a_copy_are_put_together(tmp_path):
    prompt = " ".join(f"word{i}" for i in range(60))
    copy = [
        {"id": "copy", "text": f"{prompt}\n\nAnd more."},
        *({"text": text(i)} for i in range(9)),
    ]
    file = eval_fixtures.write(tmp_path / "texts.jsonl", copy)
    space = DataSpace.build(file, tmp_path / "space", HashingEmbedder(24), chunks="tokens:20")
    config = EvalConfig(selection=SelectionConfig(k=len(space)))
    [near] = space.search(space.embedder.encode([prompt]), len(space))
    shares = [slow_overlap(prompt, [text]) for text in space.texts(near.rows)]
    assert max(shares) < 0.2  # of a single passage
    made = find_contamination(space, prompt, prompt, prompt, config)
    assert made.overlap == 1 and made.exact and made.near
    found = near_duplicates(space, near, prompt, prompt, config)
    passages = {f"copy#{i}" for i in range(3)}
    assert {space.ids[row] for row in near.rows[found]} == passages
    other = prompt.replace("word40", "else")  # 47 of 48 grams, of which 13 contain that word
    made = find_contamination(space, other, other, other, config)
    assert not made.exact and made.overlap == pytest.approx(slow_overlap(other, [prompt]))


def test_what_holds_the_scored_text_is_near_though_it_shares_no_words(tmp_path):
    """Without spaces a text is one word, of which 13-grams and this embedder see nothing."""
    query, scored = "的一是不了人我在有他", "这中大来上个国到说们"
    texts = [f"前言{query}{scored}后记", f"{scored}后记", query, scored[::-1]]
    documents = [Document(f"d{i}", text, {}) for i, text in enumerate(texts)]
    space = DataSpace.build(documents, tmp_path / "space", HashingEmbedder(24))
    [near] = space.search(space.embedder.encode([query]), 4)
    found = near_duplicates(space, near, scored, query + scored, EvalConfig())
    assert {space.ids[row] for row in near.rows[found]} == {"d0", "d1"}
    assert find_contamination(
        space, query, scored, query + scored, EvalConfig(selection=SelectionConfig(k=4))
    ).exact
    assert not find_contamination(
        space, query, "  ", query + "  是", EvalConfig(selection=SelectionConfig(k=4))
    ).exact


def test_score_first_asks_each_chunk_with_what_came_before(here, model):
    made = rows(here, model, PROMPT, methods=("sift",), leakage="score-first", chunks=3)
    tasks = ScoringTask.of(PROMPT.text, eval_fixtures.config(here, leakage="score-first", chunks=3))
    assert "".join(task.text for task in tasks) == PROMPT.text
    assert all(task.query == PROMPT.text[: len(task.query)] for task in tasks)
    first = model.score(tasks[0].text).bits
    assert [made["sift", 0, step]["bits"] for step in (0, 2, 4)] == [first] * 3
    assert made["sift", 0, 4]["document"] is None and made["sift", 2, 4]["document"]
    assert sum(made["sift", part, 0]["bytes"] for part in range(3)) == len(PROMPT.text)


def test_in_context_texts_fit_the_budget_and_the_first_is_nearest(model):
    task = ScoringTask("q", "", "z" * 100)  # longer than the window of 32
    context = InContext(model, task.text, left=task.context)
    assert context.budget == 16
    made = context.examples(["aaaa", "aaaa", "b" * 12, "cc"]).ids
    assert model.tokenizer.decode(made) == "bbbbbbbb\n\naaaa\n\n" and len(made) == 16
    in_order = InContext(model, task.text, order="selected")
    selected = in_order.examples(["aaaa", "aaaa", "b" * 12, "cc"]).ids
    assert model.tokenizer.decode(selected) == "aaaa\n\nbbbbbbbb\n\n"
    short = InContext(model, "z" * 4)
    assert short.budget == 32 - 1 - 4


@pytest.mark.parametrize("context", ["", "some words before the text "])
def test_chunks_of_a_stream_add_up_to_the_score(model, context):
    """Of a text that is longer than the window, whatever the borders of the chunks."""
    task = ScoringTask("", context, "the second half, which is longer than one window of 32")
    expected = model.score(task.text, context=context).bits
    for size in (1, 7, 32, 100):
        stream = Stream(model, task, size)
        assert torch.cat(stream.chunks).tolist() == model.encode(task.text).tolist()
        parts = [stream.bits(i, i + 1) for i in range(len(stream.chunks))]
        assert sum(parts) == pytest.approx(expected, rel=1e-5)
        assert stream.bits(0) == pytest.approx(expected, rel=1e-5)
        assert sum(parts[:2]) + stream.bits(min(2, len(parts))) == pytest.approx(expected, rel=1e-5)


def test_streaming_learns_from_each_chunk_after_its_score(here, model):
    """Against a loop over the tokens, each by the weights before the step on its chunk."""
    method = "streaming(stream_tokens=9)"
    made = rows(here, model, PROMPT, methods=(method,), eval_steps=(2,), leakage="whole")
    ids = [model.bos_token_id, *model.encode(PROMPT.text).tolist()]
    chunks = [ids[1:][i : i + 9] for i in range(0, len(ids) - 1, 9)][:5]
    rest = len(ids) - 1

    def bits(start, stop):
        total, windows = 0.0, range(0, rest, model.max_length)
        for i in range(start, stop):  # the window of a target: full ones are disjoint
            first = max(w for w in windows if w <= i)
            first = first if first + model.max_length <= rest else max(0, rest - model.max_length)
            with torch.no_grad():
                logits = model.hf_model(torch.tensor([ids[first : i + 1]])).logits[0, -1]
            total -= torch.log2(torch.softmax(logits[: model.vocab_size].double(), -1)[ids[i + 1]])
        return float(total)

    seen, expected = 0.0, {0: bits(0, rest)}
    with adapted(model, FullFineTuning(lr=1e-2)) as slot:
        for step, chunk in enumerate(chunks[:4], start=1):
            _ = slot.model
            seen += bits(9 * (step - 1), 9 * step)
            loss = slot.step(model.tokenizer.decode(chunk))
            assert made[method, 0, step]["loss"] == loss
            assert made[method, 0, step]["tokens"] == 9
            _ = slot.model
            expected[step] = seen + bits(9 * step, rest)
    for step in (0, 2, 4):
        assert made[method, 0, step]["bits"] == pytest.approx(expected[step], rel=1e-5)
    assert made[method, 0, 4]["bits"] != made[method, 0, 0]["bits"]
    assert made[method, 0, 4]["document"] == "streaming" and made[method, 0, 4]["sigma"] is None
    short = Document("s", "alpha", {})  # one chunk: nothing to learn from
    made = rows(here, model, short, methods=(method,), leakage="whole")
    assert made[method, 0, 4]["bits"] == made[method, 0, 0]["bits"]


def test_in_context_bits_are_those_of_a_loop_over_bytes(model):
    """Every byte of a long text is asked once, with the texts in front of its window."""
    task = ScoringTask("q", "", "the second half, which is longer than a window")
    context = InContext(model, task.text, left=task.context)
    front = [model.bos_token_id, *context.examples(["some text"]).ids.tolist()]
    body, room, total = model.encode(task.text).tolist(), 32 - len(front), 0.0
    for i in range(len(body)):
        full = (len(body) // room) * room
        first = (i // room) * room if i < full else len(body) - room
        seen = front + body[max(first - 1, 0) : i]
        with torch.no_grad():
            logits = model.hf_model(torch.tensor([seen])).logits[0, -1, : model.vocab_size]
        total -= math.log2(float(torch.softmax(logits.double(), -1)[body[i]]))
    assert context.score(["some text"]).bits == pytest.approx(total, rel=1e-5)


def test_context_alone_moves_no_weight_and_both_differ(here, model):
    methods = ("sift", "sift(use=context)", "sift(use=both)")
    made = rows(here, model, PROMPT, methods=methods)
    assert len({made[m, 0, 4]["bits"] for m in methods}) == 3
    assert picks(made, methods[0]) == picks(made, methods[1]) == picks(made, methods[2])
    alone = made["sift(use=context)", 0, 4]
    assert alone["loss"] is None and alone["tokens"] == 0
    (task,) = ScoringTask.of(PROMPT.text, eval_fixtures.config(here))
    space = DataSpace.open(here / "space")
    texts = {d.id: d.text for d in space.documents(range(len(space)))}
    chosen = [texts[name] for name in picks(made, "sift")]
    assert alone["bits"] == InContext(model, task.text, left=task.context).score(chosen).bits


def test_a_mode_is_a_switch_of_a_method(here, model):
    methods = tuple(f"sift(adapter={mode}, lr=0.01)" for mode in ("full", "lora", "head"))
    made = rows(here, model, PROMPT, methods=methods)
    assert len({made[m, 0, 4]["bits"] for m in methods}) == 3
    assert np.ptp([made[m, 0, 1]["loss"] for m in methods]) < 1e-5


def learned(here, model, made, method, *updates, lr=1e-2, slots=None):
    """Bits after updates done by hand; each is the steps whose texts it takes, or None: again."""
    (task,) = ScoringTask.of(PROMPT.text, eval_fixtures.config(here))
    space = DataSpace.open(here / "space")
    texts = {d.id: model.encode(d.text) for d in space.documents(range(len(space)))}
    chunks = {s: texts[made[method, 0, s]["document"]].split(model.max_length) for s in range(1, 5)}
    slots = slots or Slots(model, FullFineTuning(lr=lr))
    with slots.attached():
        slots.reset(0, optimizer=False)
        for update in updates:
            if update is None:
                slots.repeat_step([0])
            else:
                slots.step({0: [chunks[step][part] for step, part in update]})
        return slots.activate(0).score(task.text, context=task.context).bits


def test_several_texts_in_one_update_are_taken_at_the_last_of_them(here, model):
    method = "nearest(batch_size=3)"
    made = rows(here, model, PROMPT, methods=(method,), eval_steps=(0, 1, 2, 3))
    bits = [made[method, 0, step]["bits"] for step in range(5)]
    assert bits[0] == bits[1] == bits[2]
    groups = [(1, 0), (2, 0), (3, 0)], [(4, 0)]
    lr = 1e-2 * math.sqrt(3)
    assert bits[3] == learned(here, model, made, method, groups[0], lr=lr)
    assert bits[4] == learned(here, model, made, method, *groups, lr=lr)
    losses = [made[method, 0, step]["loss"] for step in (1, 2, 3)]
    assert len(set(losses)) == 3 and all(made[method, 0, s]["tokens"] for s in (1, 2, 3, 4))


def test_a_gradient_is_taken_again_for_a_repeated_text(here, model):
    method = "nearest-repeated(gradient_reuse=2)"
    made = rows(here, model, PROMPT, methods=(method,))
    expected = learned(here, model, made, method, [(1, 0)], None, [(3, 0)], None)
    assert made[method, 0, 4]["bits"] == expected
    assert made[method, 0, 2]["loss"] == made[method, 0, 1]["loss"] != made[method, 0, 3]["loss"]
    assert [made[method, 0, s]["tokens"] > 0 for s in (1, 2, 3, 4)] == [True, False, True, False]


def test_a_long_text_is_learned_chunk_by_chunk(here, model):
    method = "nearest(long_texts=chunks)"
    made = rows(here, model, PROMPT, methods=(method, "nearest(long_texts=random)", "nearest"))
    lengths = {step: len(text(int(made[method, 0, step]["document"][1:]))) for step in (1, 2, 3, 4)}
    assert {s: made[method, 0, s]["tokens"] for s in lengths} == lengths and min(
        lengths.values()
    ) > 32
    updates = [[(s, part)] for s in lengths for part in range(-(-lengths[s] // model.max_length))]
    assert made[method, 0, 4]["bits"] == learned(here, model, made, method, *updates)
    assert made["nearest(long_texts=random)", 0, 4]["bits"] != made["nearest", 0, 4]["bits"]


def test_an_optimizer_that_carries_on_keeps_its_state_and_no_weight(here, model):
    method = "nearest(persist_optimizer=true)"
    carrying = evaluator(here, model, methods=(method, "nearest"))
    first, second = (measured(carrying, PROMPT) for _ in range(2))
    assert first[method, 0, 4]["bits"] == first["nearest", 0, 4]["bits"]
    assert second["nearest", 0, 4]["bits"] == first["nearest", 0, 4]["bits"]
    slots, steps = Slots(model, FullFineTuning(lr=1e-2)), [[(step, 0)] for step in (1, 2, 3, 4)]
    by_hand = [learned(here, model, first, method, *steps, slots=slots) for _ in range(2)]
    assert by_hand == [made[method, 0, 4]["bits"] for made in (first, second)]
    assert by_hand[0] != by_hand[1]


def test_a_loss_that_is_not_finite_fails_the_prompt(here, model):
    broken = evaluator(here, model, methods=("nearest",), lr=1e38, max_grad_norm=0.0)
    assert "loss is nan at step" in broken.record(Prompt(PROMPT, "a"))["error"]


def test_a_score_that_is_not_finite_fails_the_prompt(here, model):
    """No loss tells it where the last step alone breaks the weights."""
    broken = evaluator(
        here, model, methods=("nearest",), lr=1e38, max_grad_norm=0.0, n=1, eval_steps=()
    )
    assert "score is nan bits after 1 steps" in broken.record(Prompt(PROMPT, "a"))["error"]
