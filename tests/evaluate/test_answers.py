"""Tasks with an answer: prompts, metrics and results, each against a few plain lines."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from support.eval_fixtures import write

from whet.adapt.model import LanguageModel
from whet.cli import main
from whet.data.documents import Document
from whet.evaluate.answers.generation import answer, first_line, plain_prompt
from whet.evaluate.answers.lines import file_of, line_prompts, line_task
from whet.evaluate.answers.metrics import edit_similarity, f1, normalized, same_line, same_words
from whet.evaluate.config import EvalConfig
from whet.evaluate.report.answers import BITS, AnswerResults
from whet.evaluate.results import Run
from whet.evaluate.tasks import ScoringTask

CODE = "".join(
    f"def dance_{i}(bee):\n    # turn\n    return bee.turn({i}, 'left')\n\n" for i in range(14)
)
words = st.lists(st.sampled_from(["a", "The", "bee", "bees", "Dance!", "...", "42"]), max_size=5)


def slow_distance(one, other):
    """Edit distance by its recursive definition."""

    @cache
    def distance(i, j):
        if not (i and j):
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (one[i - 1] != other[j - 1]),
        )

    return distance(len(one), len(other))


@given(st.text("ab c", max_size=7), st.text("ab c", max_size=7))
def test_edit_similarity_is_that_of_the_recursive_distance(one, other):
    left, right = one.strip(), other.strip()
    longest = max(len(left), len(right))
    expected = 1 - slow_distance(left, right) / longest if longest else 1
    assert edit_similarity(one, other) == pytest.approx(expected) == edit_similarity(other, one)
    assert same_line(one, other) == (expected == 1)


@given(words, words)
def test_f1_takes_each_common_word_once(one, other):
    answer, expected = " ".join(one), " ".join(other)
    found, wanted = normalized(answer).split(), normalized(expected).split()
    rest, common = list(wanted), 0
    for word in found:
        if word in rest:
            rest.remove(word)
            common += 1
    if common:
        precision, recall = common / len(found), common / len(wanted)
        assert f1(answer, expected) == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert f1(answer, expected) == float(found == wanted == [])
    assert same_words(answer, expected) == (found == wanted)
    assert not {"a", "the", "dance!"} & set(found)


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(1, 400))
def test_a_line_and_what_is_read_before_it_are_the_end_of_the_file_so_far(count, chars):
    prompts = list(line_prompts(Document("src/bees.py", CODE), count))
    assert len({p.id for p in prompts}) == len(prompts) == min(count, 14)
    for prompt in prompts:
        task = line_task(prompt, EvalConfig(prompt_chars=chars))
        [line] = task.answers
        number = int(prompt.id.rpartition(":")[2])
        assert CODE.splitlines()[number - 1].strip() == line == first_line(task.text)
        assert CODE.startswith(prompt.text) and prompt.text.endswith(task.context + task.text)
        assert 0 < len(task.context) <= chars and task.context == task.query
        assert not line.startswith("#") and file_of(prompt.id) == "src/bees.py"


def test_only_code_has_lines_to_complete():
    assert not list(line_prompts(Document("README.md", CODE), 1))
    assert not list(line_prompts(Document("short.py", CODE[:300]), 1))
    assert list(line_prompts(Document("r#1", CODE, {"path": "bees.go"}), 1))


METHODS = ["base", "base(samples=3)", "nearest(use=context)", "whet", "whet(use=both)"]
SMALL = [f"methods={json.dumps(METHODS)}", "model=whet-pico", "n=2", "k=5", "eval_steps=[0]",
         "max_answer_tokens=16"]  # fmt: skip


def evaluated(*arguments):
    settings = [part for line in SMALL for part in ("--set", line)]
    return CliRunner().invoke(main, ["eval", *map(str, arguments), *settings, "--quiet"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    for name in "abcdefgh":
        path = folder / "repository" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(CODE.replace("dance", f"dance_{name}"))
    (folder / "repository" / "notes.md").write_text("Bees turn left when they dance.")
    return folder


def test_lines_of_held_out_files_are_completed_and_a_run_resumes(world):
    options = ["--task", "lines", "--set", f"data.source={world / 'repository'}"]
    options += ["--set", "data.held_out=3", "--out", world / "lines"]
    for count in (1, 3):
        done = evaluated(world / "lines.whet", *options, "--per-set", count)
        assert done.exit_code == 0, done.output
    run = Run.open(world / "lines")
    files = {file_of(prompt) for prompt in run.prompts["prompt"].to_pylist()}
    indexed = {i.partition("#")[0] for i in json.loads(run_ids(world))}
    assert len(files) == 3 and not files & indexed and "notes.md" in indexed
    results = AnswerResults.of(run)
    assert results.n == 3 and set(results.values) == {"exact_match", "edit_similarity", BITS}
    for row in run.table.filter(run.table["step"].to_numpy() == 2).to_pylist():
        text = (world / "repository" / file_of(row["prompt"])).read_text().splitlines()
        expected = text[int(row["prompt"].rpartition(":")[2]) - 1]
        assert row["edit_similarity"] == edit_similarity(row["answer"], expected)
        assert row["exact_match"] == same_line(row["answer"], expected)
    assert (results.values[BITS][0] == 100).all() and (results.values[BITS][3] != 100).all()
    assert "| base(samples=3)" in done.output and "3 prompts of 3 documents" in done.output


def run_ids(world):
    from whet.space.space import DataSpace

    return json.dumps(list(DataSpace.open(world / "lines.whet").ids))


def test_questions_are_answered_by_the_weights_of_each_method(world):
    model = LanguageModel.from_pretrained("whet-pico")
    question = "How do bees turn when they dance?"
    task = ScoringTask(question, f"Question: {question}\nAnswer:", "")
    own = answer(model, plain_prompt(model, task), max_tokens=16).text
    assert own == first_line(model.generate(task.context, max_tokens=16))
    records = [{"id": "0", "question": question, "answer": ["to the left", own.upper()]}]
    questions = write(
        world / "qa.jsonl", [*records, {"question": "Who can dance?", "answer": "bees"}]
    )
    space = world / "notes.whet"
    assert CliRunner().invoke(main, ["index", str(world / "repository"), str(space)]).exit_code == 0
    done = evaluated(space, "--task", "qa", "--prompts", questions, "--out", world / "qa", "--json")
    assert done.exit_code == 0, done.output
    run = Run.open(world / "qa")
    assert run.metric("exact_match", "base").tolist()[0] == 1 and run.metric("f1", "base")[0] == 1
    record = json.loads(done.stdout)
    lines = {line["method"]: line for line in record["metrics"]["f1"]}
    assert record["task"] == "qa" and list(lines) == METHODS and record["n"] == 2
    assert lines["whet"]["minus_context"]["n"] == 2 and not lines["whet"]["verdict"]
    assert lines["base"]["minus_base"] is None
    assert (run.seconds("whet", phases=["generate_s"]) > 0).all()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--set", "task=lins"], "task is 'lins': expected text or lines or qa"),
        (["--task", "qa"], "question '0' has no answer: add a field `answer`"),
        (["--task", "qa", "--prompts", "number"], "has answer 42: expected a text, or a list"),
        (["--task", "qa", "--prompts", "long"], "tokens: expected at most max_answer_tokens"),
        (["--task", "qa", "--prompts", "docs"], "question"),
        (["--task", "lines", "--prompts", "docs"], "holds no prompts: expected files of code"),
        (["--task", "lines", "--set", "max_answer_tokens=many"], "expected an integer"),
        (["--task", "lines", "--set", "data.lines_per_file=0"], "data.lines_per_file"),
        (["--task", "lines", "--set", "data.held_out=2"], "data.prompts is"),
        (["--set", "methods=['base(samples=2)']"], "nothing is generated for task text"),
        (["--task", "lines", "--set", "methods=['streaming']"], "trains on the scored text"),
        (["--task", "qa", "--prompts", "good", "--set", "max_answer_tokens=400"], "half of what"),
    ],
)
def test_invalid_input_is_one_line(world, tmp_path, arguments, reason):
    files = {
        "docs": [{"text": "Bees dance."}],
        "number": [{"question": "How many?", "answer": 42}],
        "long": [{"id": "q", "question": "How do bees turn?", "answer": "left " * 200}],
        "none": [{"id": "0", "question": "How?"}],
        "good": [{"question": "How do bees turn?", "answer": "left"}],
    }
    for name, records in files.items():
        write(tmp_path / f"{name}.jsonl", records)
    arguments = [str(tmp_path / f"{a}.jsonl") if a in files else a for a in arguments]
    prompts = [] if "--prompts" in arguments else ["--prompts", tmp_path / "none.jsonl"]
    done = CliRunner().invoke(
        main,
        [
            "eval", str(world / "space.whet"), "--out", str(tmp_path / "run"), "--quiet",
            "--set", f"data.source={world / 'repository'}", "--set", "model=whet-pico",
            "--set", "k=5", "--set", "n=4", *map(str, [*prompts, *arguments]),
        ],
    )  # fmt: skip
    assert done.exit_code in (1, 2) and reason in done.stderr, done.output
    assert len(done.stderr.strip().splitlines()) <= 3 and "Traceback" not in done.output


def test_intervals_resample_files():
    config = EvalConfig.from_table({"task": "lines", "methods": ["base", "nearest(use=context)"]})
    values = np.array([[0.0] * 24, [100.0, 0.0] * 12])
    files = tuple(f"{i // 2}.py" for i in range(24))  # both lines of each file differ
    results = AnswerResults(config, {"exact_match": values}, np.ones((2, 24)), ("all",) * 24, files)
    _, context = results.lines("exact_match")
    assert (context.value.low, context.value.value, context.value.high) == (50, 50, 50)
    assert context.verdict("exact_match") == "better than base"
    pooled = AnswerResults.pooled([results, results], ["one", "two"])
    assert pooled.n == 48 and pooled.lines("exact_match")[1].value.n == 24
    ones = [replace(results, values={"exact_match": 100 * np.eye(2)}, seconds=np.ones((2, 2)),
                    sets=("all",) * 2, documents=("a", "b"))]  # fmt: skip
    singles = AnswerResults.pooled(ones * 6, list("abcdef"))  # few files of each data space
    assert singles.lines("exact_match")[1].value.has_interval
