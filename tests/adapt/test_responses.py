"""What is learned of a conversation and of a passage: the tokens that count in the loss."""

import json
from dataclasses import replace

import pytest
import torch
from support import tiny_models

from whet.adapt.config import LoRA, TrainingConfig
from whet.adapt.model import LanguageModel
from whet.adapt.session import adapted
from whet.adapt.updates import TrainExample, Update, plan_updates
from whet.data.documents import Document, iter_documents, to_documents
from whet.engine import Engine, Request, SamplingParams

CHATML = (
    "{% for m in messages %}<|endoftext|>{{ m.role }}\n{{ m.content | trim }}<|endoftext|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|endoftext|>assistant\n{% endif %}"
)
STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + CHATML
)
THOUGHTS = CHATML.replace("{{ m.content", "{% if loop.last %}<think>{% endif %}{{ m.content")
TURNS = [("user", "bees?"), ("assistant", "They dance."), ("user", "ants?"), ("assistant", "bees?")]


def conversation(*turns, **meta):
    messages = [{"role": role, "content": content} for role, content in turns]
    [document] = to_documents([{"id": "d", "messages": messages}], chunks="whole")
    return document


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_models.save_llama(tmp_path_factory.mktemp("tiny"), "byte-level")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 128}
    (folder / "config.json").write_text(json.dumps(config))
    return LanguageModel.from_pretrained(folder, device="cpu")


@pytest.fixture
def with_template(model, monkeypatch):
    def use(template):
        for tokenizer in (model.tokenizer, model.chat_tokenizer):
            monkeypatch.setattr(tokenizer, "chat_template", template)
        return model

    return use


def examples(model, document, prompt="", **training):
    updates = plan_updates([document], model, TrainingConfig(**training), prompt=prompt)
    return [example.text for update in updates for example in update.examples]


def learned(model, text):
    """The texts of the runs of tokens that count."""
    runs, before = [[]], False
    mask = torch.ones(len(text.tokens)) if text.loss_mask is None else text.loss_mask
    for token, counts in zip(text.tokens.tolist(), mask.tolist(), strict=True):
        if counts and not before:
            runs.append([])
        if counts:
            runs[-1].append(token)
        before = counts
    return [model.tokenizer.decode(run) for run in runs[1:]]


END = "<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, ["They dance.", "bees?"]),
        (CHATML, ["They dance." + END, "bees?" + END]),
        (STRICT, ["They dance." + END, "bees?" + END]),
        (THOUGHTS, ["They dance." + END, "bees?" + END]),
    ],
)
def test_only_responses_and_their_ends_are_learned(with_template, template, expected):
    model = with_template(template)
    [text] = examples(model, conversation(*TURNS))
    assert learned(model, text) == expected
    messages = conversation(*TURNS).meta["messages"]
    assert text.tokens.tolist() == model.encode_chat(messages, add_generation_prompt=False)
    [whole] = examples(model, conversation(*TURNS), loss="all")
    assert whole.loss_mask is None and whole.tokens.equal(
        model.training_tokens(conversation(*TURNS).text)
    )


def test_a_passage_without_its_question_is_plain_text_where_the_template_rejects_it(
    with_template, caplog
):
    model = with_template(STRICT)
    for _ in range(2):
        [text] = examples(model, conversation(*TURNS[1:]))
    assert learned(model, text) == ["They dance.", "bees?"]
    plain = "assistant: They dance.\nuser: ants?\nassistant: bees?\n"
    assert model.tokenizer.decode(text.tokens) == plain
    assert caplog.text.count("trained on as plain text") == 1 and "user first" in caplog.text


OTHER = [{"role": "assistant", "content": "b"}]  # of another text


@pytest.mark.parametrize("meta", [{}, {"messages": 12}, {"messages": ["a"]}, {"messages": OTHER}])
def test_other_texts_are_learned_whole_unless_responses_are_required(model, meta):
    document = Document("d", "They dance.", meta)
    [text] = examples(model, document)
    assert text.loss_mask is None and text.tokens.equal(model.training_tokens("They dance."))
    with pytest.raises(ValueError, match="document 'd' has no response, but loss is 'response'"):
        examples(model, document, loss="response")


def test_a_response_without_tokens_is_an_error(model):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]
    with pytest.raises(ValueError, match="document 'd': its responses have no tokens"):
        examples(model, Document("d", "q  ", {"messages": messages}))


@pytest.mark.parametrize("long_texts", ["first", "chunks", "random"])
@pytest.mark.parametrize(("asked", "answered"), [(300, 20), (100, 60), (10, 300), (300, 300)])
def test_what_is_too_long_is_cut_where_responses_are(model, long_texts, asked, answered):
    document = conversation(("user", "q" * asked), ("assistant", "r" * answered))
    texts = examples(model, document, long_texts=long_texts)
    assert all(len(text.tokens) <= 128 and text.num_loss_tokens for text in texts)
    together = sum(text.num_loss_tokens for text in texts)
    assert together == answered if long_texts == "chunks" else 0 < together <= answered
    first = int(texts[0].loss_mask.nonzero()[0])
    if long_texts != "random":  # the response has a context
        assert first >= min(asked, 128 - answered, 64)


def test_a_conditional_loss_is_that_of_the_second_half_given_the_question(model):
    document = Document("d", "Bees dance to tell where food is.")
    [text] = examples(model, document, prompt="Why dance?", loss="conditional")
    assert learned(model, text) == [" tell where food is."]
    assert model.tokenizer.decode(text.tokens) == "Why dance?\n\n" + document.text
    [text] = examples(model, conversation(*TURNS), prompt="Why?", loss="conditional")
    assert learned(model, text) == ["They dance.", "bees?"]
    [text] = examples(model, Document("d", "Bees"), loss="conditional")
    assert learned(model, text) == ["Bees"]


def test_the_loss_of_a_step_is_the_mean_of_the_response(model):
    document = conversation(("user", "bees?"), ("assistant", "They dance."))
    [text] = examples(model, document)
    losses = []
    with adapted(model, LoRA(lr=1e-2, r=4)) as session:
        for counts in (
            text,
            replace(text, loss_mask=~text.loss_mask),
            replace(text, loss_mask=None),
        ):
            session.train([Update((TrainExample("d", None, counts),))])
            losses.append(session.steps[-1].loss)
            session.restore(None)
    share = text.num_loss_tokens / len(text.tokens)
    assert losses[2] == pytest.approx(share * losses[0] + (1 - share) * losses[1], rel=1e-5)
    with Engine(None, model, LoRA(lr=1e-2, r=4)) as engine:
        request = Request("bees?", documents=(document,), sampling=SamplingParams(max_tokens=4))
        output = engine.submit(request).result()
    [step] = output.trace
    assert (step.loss, step.num_tokens) == (pytest.approx(losses[0]), text.num_loss_tokens)


def test_half_of_a_pair_and_no_response_are_reported_with_their_line(tmp_path):
    lines = ['{"prompt": "2 + 2?"}', '{"response": "4"}', '{"prompt": "2", "response": ""}',
             '{"messages": [{"role": "user", "content": "a"}]}', '{"text": "kept"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = [str(item) for item in iter_documents(tmp_path / "a.jsonl")]
    assert [f"line {i}" in text for i, text in enumerate(found[:4], 1)] == [True] * 4
