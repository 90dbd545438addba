"""Tasks of lm-evaluation-harness with adaptation: scores are the engine's, and leak nothing."""

import inspect
import math
import re
import subprocess
import sys

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from support import eval_fixtures, serving, tiny_models
from support.paths import DOCS

from whet.adapt.model import LanguageModel
from whet.engine import Engine, Request, SamplingParams
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import EvalData
from whet.evaluate.results import Run
from whet.evaluate.runner import evaluate
from whet.integrations.lm_eval import OPTIONS, WhetLM, sampling_params
from whet.select.config import SelectionConfig
from whet.space.space import DataSpace

CONTEXT, CHOICES = "alpha beta gamma", [" delta", " kappa"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return eval_fixtures.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def model(place):
    return WhetLM(str(place / "space"), str(place / "model"), adapter="full", lr=1e-2, n=3, k=10)


@pytest.fixture(scope="module")
def engine(place, model):
    loaded = model.engine.model
    return Engine(
        DataSpace.open(place / "space"),
        loaded,
        model.engine.adapter,
        selection=SelectionConfig(n=3, k=10),
    )


def test_the_page_names_every_argument():
    page = (DOCS / "protocol.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## Tasks of lm-eval")[2], re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    parameters = [name for name in inspect.signature(WhetLM).parameters if name != "options"]
    assert sorted(named) == sorted([*parameters, *OPTIONS])


def ask(*texts):
    return Instance(request_type="loglikelihood", doc={}, arguments=texts, idx=0)


def nats(score):
    return -score.bits * math.log(2)


def test_a_continuation_is_scored_after_training_for_its_context(model, engine):
    found = model.loglikelihood([ask(CONTEXT, choice) for choice in CHOICES], disable_tqdm=True)
    for (value, _), choice in zip(found, CHOICES, strict=True):
        assert value == pytest.approx(nats(engine.score(choice, prompt=CONTEXT).score), rel=1e-6)


@pytest.mark.parametrize("use", ["context", "both"])
def test_documents_in_the_context_are_scored_as_by_the_engine(place, model, engine, use):
    options = {"adapter": "full", "lr": 1e-2, "n": 3, "k": 10, "use": use}
    reading = WhetLM(str(place / "space"), str(place / "model"), **options)
    found = reading.loglikelihood([ask(CONTEXT, choice) for choice in CHOICES], disable_tqdm=True)
    for (value, _), choice in zip(found, CHOICES, strict=True):
        output = engine.submit(Request(CONTEXT, text=choice, use=use)).result()
        assert value == pytest.approx(nats(output.score), rel=1e-6)
    sampling = {"max_gen_toks": 4, "until": []}
    [text] = reading.generate_until([ask(CONTEXT, sampling)], disable_tqdm=True)
    asked = Request(CONTEXT, use=use, sampling=SamplingParams(max_tokens=4))
    assert text == engine.submit(asked).result().text
    with pytest.raises(ValueError, match="use is 'auto': expected steps or context or both"):
        WhetLM(str(place / "space"), str(place / "model"), use="auto")


def test_greedy_is_what_generation_gives(model, engine):
    sampling = {"max_gen_toks": 4, "until": []}
    [text] = model.generate_until([ask(CONTEXT, sampling)], disable_tqdm=True)
    other = ("x" if text[0] != "x" else "y") + text[1:]
    [(_, same), (_, not_same)] = model.loglikelihood(
        [ask(CONTEXT, text), ask(CONTEXT, other)], disable_tqdm=True
    )
    assert same and not not_same


def test_a_whole_text_is_scored_before_it_is_learned_from(model, engine):
    text = eval_fixtures.text(7)
    [value] = model.loglikelihood_rolling([ask(text)], disable_tqdm=True)
    half = (len(text) + 1) // 2
    first = engine.model.score(text[:half])
    second = engine.score(text[half:], prompt=text[:half]).score
    assert value == pytest.approx(nats(first) + nats(second), rel=1e-6)


@pytest.mark.parametrize("context", ["", "§§"])
def test_where_nothing_is_near_the_base_model_answers(model, engine, context):
    [(value, _)] = model.loglikelihood([ask(context, "delta")], disable_tqdm=True)
    assert value == pytest.approx(nats(engine.model.score("delta", context=context)))
    [text] = model.generate_until([ask("§§", {"max_gen_toks": 4})], disable_tqdm=True)
    assert text == engine.model.generate("§§", max_tokens=4)


def test_generation_ends_before_a_stop_text_and_takes_the_end_of_a_long_context(model, engine):
    [free] = model.generate_until([ask(CONTEXT, {"max_gen_toks": 6})], disable_tqdm=True)
    stop = free[2:4]
    options = {"max_gen_toks": 6, "until": [stop]}
    [stopped] = model.generate_until([ask(CONTEXT, options)], disable_tqdm=True)
    assert stopped == free.partition(stop)[0]
    long = "beta " * 40 + CONTEXT
    ending = engine.model.truncate_left(long, 6)
    assert long.endswith(ending) and len(engine.model.encode(ending)) == engine.model.max_length - 7
    [text] = model.generate_until([ask(long, {"max_gen_toks": 6})], disable_tqdm=True)
    assert text == engine.generate(ending, max_tokens=6).text


def test_a_server_is_evaluated_as_local_completions(place, engine):
    own = engine.model
    app = serving.app_of(serving.config(place / "model", place / "space"))
    with serving.running(app) as client:
        remote = get_model("local-completions")(
            base_url=f"{client.url}/v1/completions", model="tiny@base", batch_size=2,
            tokenizer=str(place / "model"), tokenizer_backend="huggingface",
            max_length=own.max_length - 1,
        )  # fmt: skip
        scores = remote.loglikelihood([ask(CONTEXT, c) for c in CHOICES], disable_tqdm=True)
        for (value, greedy), choice in zip(scores, CHOICES, strict=True):
            expected = own.score(choice, context=CONTEXT)
            assert value == pytest.approx(nats(expected), rel=1e-4)
            assert greedy == expected.is_greedy
        sampling = {"max_gen_toks": 4, "temperature": 0}
        [text] = remote.generate_until([ask(CONTEXT, sampling)], disable_tqdm=True)
        assert text == own.generate(CONTEXT, max_tokens=4)


def test_an_unknown_generation_option_is_refused(model):
    with pytest.raises(ValueError, match="unknown generation option 'num_beams'"):
        model.generate_until([ask(CONTEXT, {"num_beams": 4})], disable_tqdm=True)


def test_a_task_runs_with_the_model_whet(place, tmp_path):
    lines = [{"question": CONTEXT, "choices": CHOICES, "answer": 0}] * 2
    eval_fixtures.write(tmp_path / "facts.jsonl", lines)
    (tmp_path / "facts.yaml").write_text(
        "task: facts\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'facts.jsonl'}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\nmetric_list:\n"
        "  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    arguments = {"space": str(place / "space"), "model": str(place / "model"), "n": 2, "k": 10}
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(
        "whet", arguments, tasks=["facts"], task_manager=tasks, bootstrap_iters=0
    )
    assert results["results"]["facts"]["acc,none"] in (0.0, 1.0)
    assert results["n-samples"]["facts"]["effective"] == 2


def test_its_command_line_is_lm_eval_s():
    command = [sys.executable, "-m", "whet.integrations.lm_eval", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--model_args" in done.stdout


def test_auto_is_resolved_once_and_old_names_give_the_new_one(place):
    paths = str(place / "space"), str(place / "model")
    lm = WhetLM(*paths, n=2, k=5, lam="auto")
    assert lm.engine.selection.lam > 0 and lm.engine.adapter == lm.engine.model.adapter_config()
    with pytest.raises(ValueError, match="model_args: 'mode' is now called 'adapter'"):
        WhetLM(*paths, mode="lora")
    with pytest.raises(ValueError, match="model_args: 'alpha' is now called 'stop_alpha'"):
        WhetLM(*paths, alpha=0.2)


@pytest.mark.parametrize("blank", [" ", "\n", "  "])
def test_white_space_at_the_end_of_a_context_belongs_to_the_continuation(model, blank):
    first, second = model.loglikelihood(
        [ask(CONTEXT + blank, "delta"), ask(CONTEXT, blank + "delta")], disable_tqdm=True
    )
    assert first == second


@pytest.mark.parametrize("text", ["", "a", "é"])
def test_a_whole_text_may_be_shorter_than_its_chunks(model, engine, text):
    [value] = model.loglikelihood_rolling([ask(text)], disable_tqdm=True)
    assert value == pytest.approx(nats(engine.model.score(text)) if text else 0.0)


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_options_that_ask_for_nothing_are_ignored(name):
    options = {name: 5, "num_beams": 1, "repetition_penalty": 1.0, "top_p": None}
    assert sampling_params(options).max_tokens == 5
    assert sampling_params({"temperature": 0.7}).temperature == 0.7
    assert sampling_params({"temperature": 0.7, "do_sample": False}).temperature == 0.0


def test_without_adaptation_the_base_model_answers(place):
    lm = WhetLM(str(place / "space"), str(place / "model"), n=0)
    base = lm.engine.model
    [(value, _)] = lm.loglikelihood([ask(CONTEXT, " delta")], disable_tqdm=True)
    assert value == pytest.approx(nats(base.score(" delta", context=CONTEXT)))
    [rolling] = lm.loglikelihood_rolling([ask("alpha beta")], disable_tqdm=True)
    assert rolling == pytest.approx(nats(base.score("alpha beta")))
    [text] = lm.generate_until([ask(CONTEXT, {"max_gen_toks": 4})], disable_tqdm=True)
    assert text == base.generate(CONTEXT, max_tokens=4)


@pytest.mark.parametrize("kind", list(tiny_models.TOKENIZERS))
def test_without_adaptation_the_numbers_are_those_of_lm_eval_s_own_model(place, tmp_path, kind):
    folder = str(tiny_models.save_llama(tmp_path, kind))
    own = WhetLM(str(place / "space"), folder, n=0)
    theirs = HFLM(folder, device="cpu", dtype="float32", add_bos_token=True)
    pairs = [("the import", " of the value"), ("the list\n", "value"), ("a ", "list"), ("", "the"),
             ("the list of the import " * 9, " a value")]  # fmt: skip
    asked = [ask(*pair) for pair in pairs]
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    found = own.loglikelihood(asked, disable_tqdm=True)
    for pair, (ours, greedy), (value, same) in zip(pairs, found, expected, strict=True):
        assert (ours, greedy) == (pytest.approx(value, rel=1e-5), same), pair
    theirs.add_bos_token = False  # whole texts get their start token in any case
    texts = [ask("the value of the list"), ask("the import of the list. " * 12)]
    rolling = own.loglikelihood_rolling(texts, disable_tqdm=True)
    assert rolling == pytest.approx(theirs.loglikelihood_rolling(texts, disable_tqdm=True))
    theirs.add_bos_token = True
    for until in ([], ["a"], ["th", "\n"]):
        options = {"max_gen_toks": 12, "until": until, "do_sample": False}
        asked = [ask("the import of", options), ask("a value", options)]
        answers = zip(
            *(lm.generate_until(asked, disable_tqdm=True) for lm in (own, theirs)), strict=True
        )
        for ours, text in answers:
            assert ours.removeprefix(" ") == text.removeprefix(" ")


def test_chats_are_scored_as_by_lm_eval_s_own_model(place, tmp_path):
    folder = tiny_models.save_llama(tmp_path, "byte-level")
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    own = WhetLM(str(place / "space"), str(folder), n=0)
    theirs = HFLM(str(folder), device="cpu", dtype="float32", add_bos_token=True)
    chat = [{"role": "user", "content": "the list"}]
    texts = [lm.apply_chat_template(chat) for lm in (own, theirs)]
    assert texts[0] == texts[1]
    [[(ours, _)], [(value, _)]] = [
        lm.loglikelihood([ask(texts[0], "a value")], disable_tqdm=True) for lm in (own, theirs)
    ]
    assert ours == pytest.approx(value, rel=1e-5)


def test_exact_match_of_questions_is_that_of_an_lm_eval_task(place, tmp_path):
    """The base model's answers to some questions are accepted, in other case and punctuation."""
    base, questions = LanguageModel.from_pretrained("whet-pico"), []
    for name in ("alpha", "beta", "gamma"):
        own = base.generate(f"Question: {name}?\nAnswer:", max_tokens=8).strip().partition("\n")[0]
        answer = f"{own.upper()}!" if name != "beta" else "something else"
        questions.append({"question": f"{name}?", "answer": answer})
    source = eval_fixtures.write(tmp_path / "questions.jsonl", questions)
    config = EvalConfig.from_table(
        {"task": "qa", "model": "whet-pico", "methods": ["base"], "max_answer_tokens": 8, "k": 5}
    )
    data = EvalData(space=str(place / "space"), prompts=str(source))
    evaluate(data, tmp_path / "run", config, progress=False)
    (tmp_path / "ask.yaml").write_text(
        f"task: ask\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {source}\n"
        'test_split: test\noutput_type: generate_until\ndoc_to_text: "Question: {{question}}\\n'
        "Answer:\"\ndoc_to_target: '{{answer}}'\ngeneration_kwargs:\n  until: []\n"
        "  max_gen_toks: 8\nfilter_list:\n  - name: line\n    filter:\n      - function: regex\n"
        "        regex_pattern: '(\\S.*)'\n      - function: take_first\nmetric_list:\n"
        "  - metric: exact_match\n    ignore_case: true\n    ignore_punctuation: true\n"
    )
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(
        WhetLM(str(place / "space"), "whet-pico", n=0), tasks=["ask"], task_manager=tasks,
        bootstrap_iters=0,
    )  # fmt: skip
    ours = Run.open(tmp_path / "run").metric("exact_match", "base").mean()
    assert results["results"]["ask"]["exact_match,line"] == pytest.approx(ours) and ours == 2 / 3
