"""Documents in the model's context, as gradient steps, or both."""

import json
import shutil
from dataclasses import replace

import pytest
from support import tiny_models

import whet
from whet.adapt.model import LanguageModel
from whet.data.documents import Document
from whet.engine import Engine, Request, SamplingParams
from whet.engine.in_context import WITH_PASSAGES

DOCUMENTS = tuple(
    Document(f"d{i}", text) for i, text in enumerate(["bees dance", "ants walk", "bees dance"])
)
QUESTION = {"role": "user", "content": "why?"}
CHAT = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, QUESTION)
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
SIX = SamplingParams(max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_models.save(tmp_path_factory.mktemp("long"), "llama")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 160}))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return LanguageModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def engine(model):
    with Engine(None, model, whet.LoRA(lr=0.05, r=4)) as engine:
        yield engine


def answer(engine, **options):
    request = {"prompt": "why?", "documents": DOCUMENTS, "sampling": SIX} | options
    return engine.submit(Request(**request)).result()


@pytest.mark.parametrize("use", ["context", "both"])
def test_a_prompt_is_read_after_the_documents_the_first_of_them_last(engine, use):
    output = answer(engine, use=use)
    assert output.evidence.in_context == ("d0", "d1")
    assert len(output.trace) == (3 if use == "both" else 0)
    assert output.num_prompt_tokens == len("ants walk\n\nbees dance\n\nwhy?") + 1
    if use == "context":
        text = engine.model.generate("ants walk\n\nbees dance\n\nwhy?", max_tokens=6)
        assert output.text == text and "2 passages in the context" in str(output.evidence)


def test_a_conversation_has_the_documents_in_its_last_question(engine):
    output = answer(engine, use="context", messages=CHAT)
    content = WITH_PASSAGES.format(passages="ants walk\n\nbees dance", question="why?")
    read = engine.model.encode_chat([*CHAT[:2], QUESTION | {"content": content}])
    expected = answer(engine, token_ids=tuple(read), adapt=False)
    assert output.evidence.in_context == ("d0", "d1")
    assert output.text == expected.text and output.num_prompt_tokens == len(read) + 1
    alone = answer(engine, messages=CHAT, use="context", adapt=False)
    read = tuple(engine.model.encode_chat(CHAT))
    assert alone.text == answer(engine, token_ids=read, adapt=False).text
    assert alone.evidence.in_context == ()


def test_an_answer_that_has_begun_stays_behind_the_documents(engine):
    output = answer(engine, use="context", messages=CHAT, answer_prefix="So ")
    without = answer(engine, use="context", messages=CHAT)
    assert output.num_prompt_tokens == without.num_prompt_tokens + len("So ")


@pytest.mark.parametrize("messages", [None, CHAT])
@pytest.mark.parametrize("size", [10, 60, 100, 140])
def test_documents_stay_within_the_context(engine, messages, size):
    documents = (Document("long", "z" * size), *DOCUMENTS)
    prompt = "why? " * 12
    asked = None if messages is None else (*messages[:2], QUESTION | {"content": prompt})
    output = answer(engine, prompt=prompt, messages=asked, documents=documents, use="context")
    assert output.num_prompt_tokens + 6 <= engine.model.max_length
    assert output.num_tokens == 6 or output.finish_reason == "stop"
    if messages is not None and size == 140:
        assert "long" not in output.evidence.in_context  # it is not cut


def test_a_prompt_that_fills_the_context_leaves_no_room(engine):
    output = answer(engine, prompt="q" * 152, use="both")
    assert output.evidence.in_context == () and len(output.trace) == 3
    with pytest.raises(ValueError, match="has a context of 160"):
        answer(engine, prompt="q" * 200, use="both")


def test_no_time_for_steps_still_leaves_the_documents_in_the_context(engine):
    output = answer(engine, use="both", deadline_s=0.0)
    assert not output.trace.steps and output.trace.stop_reason == "deadline"
    assert output.evidence.in_context == ("d0", "d1")


def test_steps_on_documents_that_are_read_have_a_quarter_of_the_rate(engine, model):
    both = [step.loss for step in answer(engine, use="both").trace]
    with Engine(None, model, whet.LoRA(lr=0.05 / 4, r=4)) as slower:
        assert both == [step.loss for step in answer(slower, use="steps").trace]
    assert both != [step.loss for step in answer(engine, use="steps").trace]


def test_a_text_is_scored_after_the_documents(engine):
    base, context, both = (
        answer(engine, text=" bees dance", use=use) for use in ("steps", "context", "both")
    )
    assert context.base == both.base == base.base
    assert len({base.score.bits, context.score.bits, both.score.bits, base.base.bits}) == 4
    joined = engine.model.score(" bees dance", context="ants walk\n\nbees dance\n\nwhy?")
    assert context.score.bits == pytest.approx(joined.bits, rel=1e-5)
    assert both.scores[3] == both.score


def test_auto_reads_for_a_chat_with_a_template_and_takes_steps_otherwise(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    templated = LanguageModel.from_pretrained(tmp_path / "chat", device="cpu")
    assert templated.has_chat_template and not model.has_chat_template
    logprobs = replace(SIX, prompt_logprobs=1)
    with Engine(None, templated, whet.LoRA(lr=0.05, r=4)) as engine:
        chosen = [
            answer(engine, **options).evidence
            for options in (
                {"messages": CHAT},
                {},
                {"text": " bees dance"},
                {"messages": CHAT, "sampling": logprobs},
                {"messages": CHAT, "use": "both"},
            )
        ]
    assert [e.chosen_use for e in chosen] == ["context", "steps", "steps", "steps", None]
    assert [e.num_steps for e in chosen] == [0, 3, 3, 3, 3]
    assert "use: context, chosen by default" in str(chosen[0]) and "use:" not in str(chosen[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": ()}, "messages is empty"),
        ({"messages": CHAT, "text": "a"}, "both messages and a text to score"),
        ({"use": "both", "sampling": replace(SIX, prompt_logprobs=1)}, "expected steps with"),
    ],
)
def test_requests_that_make_no_sense_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Request("why?", **options)
