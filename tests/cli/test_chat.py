"""A conversation through a pipe, as `whet chat` reads it."""

import json
import shutil

import pytest
from click.testing import CliRunner
from support import tiny_models

from whet.cli import main
from whet.data.documents import Document
from whet.space.space import DataSpace

TEXTS = ("alpha beta gamma delta", "beta gamma epsilon zeta", "eta theta iota kappa alpha")
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
SMALL = ["-k", 3, "-n", 2, "--max-tokens", 6, "--device", "cpu", "--lr", 0.05,
         "--deadline-s", "inf"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    DataSpace.build([Document(f"d{i}", t) for i, t in enumerate(TEXTS)], folder / "space")
    config = tiny_models.save(folder / "model") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_positions": 256}))
    for weights in (folder / "model").glob("*.safetensors"):
        weights.unlink()  # made for the shorter context
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
    made.save_pretrained(folder / "model")
    return folder


def chat(folder, *lines, model=None, more=()):
    words = ["chat", folder / "space", "--model", (model or folder) / "model", *SMALL, *more]
    text = "".join(f"{line}\n" for line in lines)
    done = CliRunner().invoke(main, [str(word) for word in words], input=text)
    assert done.exit_code == 0, done.output
    return done


def test_answers_their_sources_and_commands(folder):
    done = chat(folder, "alpha beta?", "/why", "/use context", "gamma?", "/base", "/quit", "never")
    assert "adapted by 2 steps on" in done.stderr and "sources: d" in done.stderr
    assert "gain" in done.stdout and "never" not in done.stdout + done.stderr
    assert done.stderr.count("adapted by") == 1 and "base model" in done.stderr


def test_the_base_model_answers_where_nothing_is_near(folder):
    done = chat(folder, "qqq", "/base", "/why")
    assert "no document is near the prompt" in done.stderr
    answer, base = done.stdout.splitlines()[:2]
    assert answer == base
    assert "no document is near the last question" in done.stdout


def test_a_wrong_line_is_reported_and_the_next_one_answered(folder):
    done = chat(folder, "/base", "/nothing", "/use maybe", "x" * 400, "", "/reset", "/help")
    for message in (
        "/base needs a question",
        "/nothing is not a command",
        "has a context of 256",
        "/use is followed by auto",
    ):
        assert message in done.stderr
    assert "/use is followed by auto or" in done.stderr
    assert "/use context|steps|both" in done.stdout


def test_the_default_is_context_with_a_chat_template_and_steps_without(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    plain = chat(folder, "alpha beta?")
    assert "adapted by 2 steps" in plain.stderr and "by default" not in plain.stderr
    done = chat(folder, "alpha beta?", "/use both", "beta?", "/use auto", "gamma?", model=tmp_path)
    lines = [line for line in done.stderr.splitlines() if "in the context" in line]
    chosen = ["use: context, chosen by default" in line for line in lines]
    assert chosen == [True, False, True] and "adapted by 2 steps" in lines[1]
    assert all("base model with" in lines[i] for i in (0, 2))


def test_steps_end_at_the_deadline_and_passages_are_read_nevertheless(folder):
    done = chat(folder, "alpha beta?", more=["--use", "both", "--deadline-s", 0])
    assert "base model with 2 passages in the context" in done.stderr
    assert "no time for more steps" in done.stderr


def test_a_long_conversation_stays_within_the_context(folder):
    questions = [f"alpha beta gamma {'delta ' * i}?" for i in range(2, 9)]
    done = chat(folder, *questions, more=["--use", "both"])
    assert done.stderr.count("adapted by 2 steps") == len(questions)
