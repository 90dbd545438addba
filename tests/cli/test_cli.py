"""Every command, as a user types it, with a tiny model."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import tiny_models
from support.paths import ROOT
from transformers import AutoModelForCausalLM

from whet.adapt.config import AdapterOptions, OptimizerConfig
from whet.cli import main
from whet.cli.options import FLAT_NAMES
from whet.config import config_fields
from whet.io import printable
from whet.select.config import SelectionConfig

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with texts, a data space and a model."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    with (folder / "texts.jsonl").open("w") as out:
        for i in range(20):
            out.write(json.dumps({"id": f"d{i}", "text": " ".join(rng.choice(WORDS, 9))}) + "\n")
    tiny_models.save(folder / "model")
    whet("index", folder / "texts.jsonl", folder / "space", "--quiet")
    return folder


def run(*words, stdin=None):
    return CliRunner().invoke(main, [str(word) for word in words], input=stdin)


def whet(*words, stdin=None):
    done = run(*words, stdin=stdin)
    assert done.exit_code == 0, done.output
    return done.stdout


SMALL = ["-k", 10, "-n", 3]


def test_index_twice_adds_nothing_and_new_texts_are_added(folder, tmp_path):
    space, more = tmp_path / "space", tmp_path / "more.jsonl"
    first = json.loads(whet("index", folder / "texts.jsonl", space, "--json", "--quiet"))
    again = json.loads(whet("index", folder / "texts.jsonl", space, "--json", "--quiet"))
    changes, again_changes = first.pop("changes"), again.pop("changes")
    assert first == again and first["documents"] == 20
    assert changes["documents"]["added"] == 20 and again_changes["documents"]["added"] == 0
    more.write_text((folder / "texts.jsonl").read_text() + '{"id": "new", "text": "alpha mu"}\n')
    assert json.loads(whet("index", more, space, "--json", "--quiet"))["documents"] == 21


def test_index_shows_progress_on_stderr_only(folder, tmp_path):
    done = run("index", folder / "texts.jsonl", tmp_path / "space", "--json")
    assert "embedding" in done.stderr and json.loads(done.stdout)["documents"] == 20


def test_select_prints_ids_and_json(folder):
    record = json.loads(whet("select", folder / "space", "alpha beta", *SMALL, "--json"))
    assert len(record["picks"]) == 3 and len(record["sigma"]) == 4 and record["sigma"][0] == 1
    plain = whet("select", folder / "space", "-", *SMALL, stdin="alpha beta")
    assert [line.split()[1] for line in plain.splitlines()[1:]] == [
        p["id"] for p in record["picks"]
    ]


def test_k_may_be_omitted_in_a_small_space(folder):
    for verb in ("select", "explain"):
        assert len(json.loads(whet(verb, folder / "space", "alpha", "--json"))["picks"]) == 50
    words = ["select", folder / "space", "--targets", folder / "texts.jsonl", "-n", 4, "--json"]
    assert json.loads(whet(*words))["candidates"] == 20


@pytest.mark.parametrize("verb", ["select", "explain"])
def test_a_prompt_from_stdin_is_in_the_record_with_each_picks_metadata(folder, verb):
    record = json.loads(whet(verb, folder / "space", "-", *SMALL, "--json", stdin="alpha beta"))
    assert record["prompt"] == "alpha beta"
    assert all(pick["meta"] == {} and 0 < pick["cosine"] <= 1.001 for pick in record["picks"])


@pytest.mark.parametrize("words", [["space", "export"], ["space", "info"]])
def test_a_closed_pipe_ends_a_command_without_a_message(folder, tmp_path, words):
    source = tmp_path / "many.jsonl"
    source.write_text("".join(f'{{"text": "alpha {"beta " * i}"}}\n' for i in range(300)))
    whet("index", source, tmp_path / "s", "--quiet")
    command = [sys.executable, "-m", "whet", *words, str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("selector", ["nearest", "nearest-repeated", "uncertainty", "random"])
def test_select_takes_every_selector(folder, selector):
    words = ["select", folder / "space", "alpha", *SMALL, "--selector", selector, "--json"]
    assert len(json.loads(whet(*words))["picks"]) == 3


def test_adaptive_stopping_takes_fewer_steps(folder):
    words = ["select", folder / "space", "alpha beta", "-k", 10, "-n", 10, "--json"]
    assert len(json.loads(whet(*words, "--stop-alpha", 9))["picks"]) == 0
    assert len(json.loads(whet(*words, "--stop-alpha", 1e-6))["picks"]) == 10


def test_values_chosen_for_auto_are_printed_as_options(folder):
    words = ["select", folder / "space", "alpha beta", *SMALL, "--json"]
    done = run(*words, "--lam", "auto", "--stop-alpha", "auto")
    chosen = done.stderr.partition("chosen on the data space: ")[2].split()
    assert [chosen[0], chosen[2]] == ["--lam", "--stop-alpha"]
    assert json.loads(whet(*words, *chosen))["picks"] == json.loads(done.stdout)["picks"]


def test_explain_prints_the_gain_of_each_pick(folder):
    words = ["explain", folder / "space", "alpha beta", *SMALL]
    picks = json.loads(whet(*words, "--json"))["picks"]
    assert [pick["step"] for pick in picks] == [1, 2, 3] and picks[0]["gain"] > 0
    assert all(pick["id"] in whet(*words) for pick in picks)


def test_bm25_proposes_documents_that_share_a_word(folder):
    record = json.loads(
        whet("select", folder / "space", "alpha", *SMALL, "--retriever", "bm25", "--json")
    )
    assert all("alpha" in pick["text"].split() for pick in record["picks"])


def test_select_with_targets_writes_or_prints_a_training_set(folder, tmp_path):
    words = ["select", folder / "space", "--targets", folder / "texts.jsonl", "-n", 40, "-k", 5]
    printed = [json.loads(line) for line in whet(*words).splitlines()]
    assert sum(pick["count"] for pick in printed) == 40
    assert printed[0].keys() == {"id", "text", "meta", "count", "first_picked_at", "gain_share"}
    out = tmp_path / "picks.jsonl"
    summary = json.loads(whet(*words, "--out", out, "--json"))
    assert [json.loads(line) for line in out.read_text().splitlines()] == printed
    assert (summary["targets"], summary["steps"], summary["documents"]) == (20, 40, len(printed))
    assert "40 steps, for 20 targets" in whet(*words, "--out", out)
    words[5] = 15
    once = json.loads(whet(*words, "--no-repeats", "--json"))["picks"]
    assert len(once) == 15 and {pick["count"] for pick in once} == {1}


def test_generate_prints_the_answer_and_its_trace(folder):
    words = ["generate", folder / "space", "alpha", "--model", folder / "model", *SMALL]
    answer = json.loads(whet(*words, "--max-tokens", 4, "--json"))
    assert len(answer["trace"]) == 6  # each of three texts exceeds the model's context of 32
    assert {"id", "sigma", "loss"} <= answer["trace"][0].keys()
    assert whet(*words, "--max-tokens", 4) == printable(answer["text"]) + "\n"


def test_a_large_model_on_a_cpu_takes_ten_steps_unless_n_is_given(folder, monkeypatch):
    monkeypatch.setattr("whet.adapt.config.LARGE", 0)
    words = ["generate", folder / "space", "alpha", "--model", folder / "model", "-k", 10, "--json"]
    words += ["--max-tokens", 2, "--device", "cpu", "--long-texts", "first"]
    assert len(json.loads(whet(*words))["trace"]) == 10
    assert len(json.loads(whet(*words, "-n", 50))["trace"]) > 10


def test_generate_compares_with_the_base_model(folder):
    words = ["generate", folder / "space", "alpha", "--model", folder / "model", *SMALL]
    words += ["--max-tokens", 4, "--lr", 0.1]
    base = json.loads(whet(*words, "-n", 0, "--json"))["text"]
    compared = json.loads(whet(*words, "--compare", "--json"))
    assert compared["base"] == base != compared["text"]
    plain = f"base model:\n{base}\n\nadapted model:\n{compared['text']}\n"
    assert whet(*words, "--compare") == printable(plain)


def test_an_empty_answer_is_reported(folder, tmp_path):
    model = shutil.copytree(folder / "model", tmp_path / "model")
    ends = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():  # every hidden state is the embedding of the token that ends a text
        ends.transformer.ln_f.weight.zero_()
        ends.transformer.ln_f.bias.copy_(99 * ends.transformer.wte.weight[ends.config.eos_token_id])
    ends.save_pretrained(model)
    words = ["generate", folder / "space", "alpha", "--model", model, "--max-tokens", 4, "-n", 0]
    found = run(*words)
    assert found.stdout == "\n" and "the answer is empty" in found.stderr.splitlines()[-1]
    assert run(*words, "--quiet").stderr == ""


def test_the_documents_trained_on_are_printed_on_stderr_unless_quiet(folder):
    words = ["generate", folder / "space", "alpha", "--model", folder / "model", *SMALL]
    [line] = run(*words, "--max-tokens", 2).stderr.splitlines()
    assert line.startswith("adapted by 6 steps on 3 passages (") and "sources: d" in line
    assert run(*words, "--max-tokens", 2, "--quiet").stderr == ""
    refused = run(*words, "--device", "nowhere")
    assert refused.exit_code != 0 and "nowhere" in refused.stderr


def test_the_line_says_whether_the_steps_helped(folder):
    words = ["generate", folder / "space", "alpha beta", "--model", "whet-pico", *SMALL]
    words[2] = " ".join(WORDS * 6)
    evidence = json.loads(whet(*words, "--max-tokens", 2, "--json"))["evidence"]
    before, after = evidence["bits_per_byte"].values()
    line = run(*words, "--max-tokens", 2).stderr
    assert f"held-back part of the prompt {before:.2f} → {after:.2f} bits per byte" in line
    undone = json.loads(whet(*words, "--max-tokens", 2, "--lr", 1, "--json"))
    assert undone["stop_reason"] == "evidence" and undone["evidence"]["num_steps"] == 0
    off = json.loads(whet(*words, "--max-tokens", 2, "--evidence", "off", "--json"))
    assert off["evidence"]["bits_per_byte"] == {}


def test_the_base_model_answers_where_nothing_is_near(folder):
    words = ["generate", folder / "space", "qqq", "--model", folder / "model", *SMALL]
    done = run(*words, "--max-tokens", 2, "--json")
    answer = json.loads(done.stdout)
    assert answer["stop_reason"] == "no_match" and answer["trace"] == []
    assert answer["text"] == json.loads(whet(*words, "-n", 0, "--max-tokens", 2, "--json"))["text"]
    assert "no document is near the prompt" in run(*words, "--max-tokens", 2).stderr


@pytest.mark.parametrize("adapter", ["auto", "full", "lora", "head"])
def test_score_prints_bits_before_and_after(folder, adapter):
    words = ["score", folder / "space", "alpha beta gamma", "--model", folder / "model", *SMALL]
    record = json.loads(whet(*words, "--adapter", adapter, "--lr", 0.01, "--json"))
    assert record["base"] > record["adapted"] > 0


def test_training_and_optimizer_options_reach_the_engine(folder):
    words = ["score", folder / "space", "alpha beta gamma", "--model", folder / "model", *SMALL]
    words += ["--lr", 0.01, "--json"]
    adapted = {json.loads(whet(*words, *more))["adapted"] for more in (
        [], ["--order", "reversed"], ["--batch-size", 3], ["--optimizer", "sgd"],
        ["--adapter", "lora", "--target-modules", "c_attn"],
        ["--adapter", "lora", "--target-modules", "c_attn", "--r", 2, "--lora-alpha", 4],
    )}  # fmt: skip
    assert len(adapted) == 6


def test_every_field_of_a_configuration_is_an_option_with_its_default():
    options = {param.name: param for param in main.commands["generate"].params}
    for kind in (SelectionConfig, AdapterOptions, OptimizerConfig):
        for field in config_fields(kind):
            option = options[FLAT_NAMES.get((kind, field.name), field.name)]
            assert option.help == field.help and option.default == field.default


@pytest.mark.parametrize(
    "words, new",
    [
        (["why", "s", "p"], "`whet explain`"),
        (["key", "f", "n"], "`whet keys create`"),
        (["reproduce", "fig1"], "`python -m studies`"),
        (["space", "serve", "s"], "`whet ray serve`"),
        (["select", "s", "p", "--alpha", "1"], "--stop-alpha"),
        (["select", "s", "p", "--candidates", "bm25"], "--retriever"),
        (["generate", "s", "p", "--mode", "lora"], "--adapter"),
        (["generate", "s", "p", "--rank", "8"], "--r"),
        (["index", "a", "s", "--public", "a"], "--public-label"),
        (["report", "r", "--texts", "s"], "--space"),
        (["space", "doctor", "s", "--most", "1"], "--max-prompts"),
    ],
)
def test_an_old_name_is_a_usage_error_that_gives_the_new_one(words, new):
    done = run(*words)
    assert done.exit_code == 2 and f"is now {new}" in done.stderr


def test_a_removed_option_is_a_usage_error_that_says_what_to_do():
    done = run("eval", "s", "--out", "r", "--advise", "p")
    assert done.exit_code == 2 and "--advise was removed: compare" in done.stderr


def test_eval_then_report(folder, tmp_path):
    words = ["eval", folder / "space", "--prompts", folder / "texts.jsonl", "--per-set", 2]
    words += ["--out", tmp_path / "run", "--set", "n=2", "--set", "k=5", "--quiet"]
    assert "all" in whet(*words, "--set", f"model='{folder / 'model'}'")
    record = json.loads(whet("report", tmp_path / "run", "--json", "--plot", tmp_path / "c.png"))
    assert record["n"] == 2 and (tmp_path / "c.png").exists()
    assert "| NN |" in " ".join(whet("report", tmp_path / "run").split())
    words[words.index(tmp_path / "run")] = tmp_path / "other"
    own = ["--set", f"model='{folder / 'model'}'", "--set", "methods=['random']"]
    whet(*words, *own)
    both = [tmp_path / "run", tmp_path / "other"]
    [line, *_] = json.loads(whet("report", *both, "--json"))["lines"]
    assert line["methods"].keys() > {"sift", "random"}
    done = run("report", *both, tmp_path / "other")
    assert done.exit_code == 1 and "has method 'random', and so has a run before it" in done.output
    page = tmp_path / "page.html"
    whet("report", tmp_path / "run", "--html", page, "--space", folder / "space")
    assert page.read_text().startswith("<!doctype html>") and '"texts":["' in page.read_text()


def test_eval_by_a_file_then_every_view(folder, tmp_path):
    toml = f"""
    model = "{folder / "model"}"
    methods = ["nearest", "sift", "sift(use=context)"]
    n = 2
    k = 5
    [data]
    space = "{folder / "space"}"
    prompts = "{folder / "texts.jsonl"}"
    per_set = 10
    """
    (tmp_path / "run.toml").write_text(toml)
    run_of = ["eval", tmp_path / "run.toml", "--out", tmp_path / "run", "--quiet"]
    whet(*run_of)
    assert "reliability" in whet("report", tmp_path / "run", "--view", "uncertainty")
    made = json.loads(whet("report", tmp_path / "run", "--view", "cost", "--json"))
    assert len(made) == 1
    done = run("report", tmp_path / "run", "--drop-leaks")  # all prompts are in the data space
    assert done.exit_code == 1 and "is left" in done.output


NO_TORCH = """
import sys
class Missing:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name, name="torch")
sys.meta_path.insert(0, Missing())
from whet.adapt.config import AdapterOptions, OptimizerConfig
from whet.cli import main
from whet.cli.options import FLAT_NAMES
from whet.config import config_fields
from whet.select.config import SelectionConfig
main(sys.argv[1:])
"""

SMALL_RUN = ["--set", "n=9"]
BAD = [
    (2, ["select", "{space}", "alpha", "-n", "0"], "n is 0"),
    (2, ["report", "{space}", "--space", "{space}"], "--space requires --html"),
    (2, ["select", "{space}", "alpha", "-k", "500"], "k is 500, but the data space holds 20"),
    (2, ["select", "{space}", "alpha", "-k", "9", "--lam", "0"], "lam is 0"),
    (2, ["select", "{space}", "", "-k", "9"], "prompt is ''"),
    (2, ["select", "{space}", "☃", "-k", "9"], "shares no term"),
    (2, ["select", "{space}", "alpha", "-k", "9", "--selector", "best"], "'best' is not one of"),
    (1, ["select", "nowhere", "alpha"], "nowhere"),
    (1, ["index", "nowhere.jsonl", "{out}"], "nowhere.jsonl"),
    (1, ["index", "{texts}", "{texts}"], "is a file, but a data space is a folder: choose"),
    (2, ["index", "{texts}", "{out}", "--embedder", "word2vec"], "embedder is 'word2vec'"),
    (1, ["index", "{texts}", "{space}", "--embedder", "hf:x"], "was made by embedder lsa"),
    (1, ["generate", "{space}", "alpha", "-k", "9", "--model", "nowhere"], "cannot load model"),
    (2, ["select", "{space}"], "either PROMPT or --targets"),
    (2, ["select", "{space}", "alpha", "--targets", "{texts}"], "either PROMPT or --targets"),
    (2, ["select", "{space}", "alpha", "--out", "{out}"], "require --targets"),
    (2, ["select", "{space}", "--targets", "{texts}", "--stop-alpha", "1"], "cannot be used"),
    (2, ["select", "{space}", "--targets", "{texts}", "--lam", "auto"], "cannot be used"),
    (2, ["select", "{space}", "alpha", "-k", "9", "--lam", "best"], "'best' is not a valid"),
    (2, ["select", "{space}", "--targets", "{texts}", "-k", "9", "-n", "0"], "n is 0"),
    (2, ["select", "{space}", "--targets", "{strange}", "-k", "9"], "target 0 ('☃') shares no"),
    (1, ["select", "{space}", "--targets", "{empty}", "--out", "{out}"], "holds no documents"),
    (1, ["select", "{space}", "--targets", "nowhere"], "nowhere does not exist"),
    (2, ["generate", "{space}", "x" * 40, "-k", "9", "--model", "{model}"], "has a context of 32"),
    (2, ["score", "{space}", "", "-k", "9", "--model", "{model}"], "too short to split"),
    (1, ["eval", "{space}", "--prompts", "nowhere", "--out", "{out}"], "nowhere"),
    (2, ["eval", "{space}", "--prompts", "{texts}", "--out", "{out}", "--set", "x=1"], "name 'x'"),
    (2, ["eval", "{space}", "--out", "{out}"], "pass SPACE and --prompts"),
    (2, ["eval", "{space}", "--prompts", "{texts}", "--out", "{out}"], "lower n, as by --set n=20"),
    (
        1,
        ["eval", "{space}", "--prompts", "{texts}", "--out", "{out}", "--model", "no", *SMALL_RUN],
        "model 'no'",
    ),
    (
        2,
        ["generate", "{space}", "alpha", "-k", "9", "--seed", "-1"],
        "seed is -1: expected a whole",
    ),
    (1, ["index", "{texts}", "{texts}/space"], "cannot be created (Not a directory): choose"),
    (1, ["report", "nowhere"], "holds no run"),
    (1, ["report", "{space}"], "holds no run"),
    (1, ["select", "{texts}", "alpha"], "is a file"),
]


@pytest.mark.parametrize("code, words, message", BAD, ids=lambda x: str(x)[:40])
def test_an_error_is_one_clear_line(folder, tmp_path, code, words, message):
    names = {"space": folder / "space", "texts": folder / "texts.jsonl"}
    names |= {"model": folder / "model", "out": tmp_path / "out"}
    for name, text in (("empty", ""), ("strange", '{"text": "☃"}')):
        names[name] = tmp_path / f"{name}.jsonl"
        names[name].write_text(text)
    done = run(*[word.format(**names) for word in words])
    last = done.stderr.strip().splitlines()[-1]
    assert done.exit_code == code and last.startswith("Error: ") and message in last
    assert not (tmp_path / "out").exists() and done.stdout == ""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of a file's size")
@pytest.mark.parametrize(
    "words",
    [
        ["select", "{space}", "--targets", "{texts}", "-k", "9", "-n", "3"],
        ["space", "export", "{space}"],
    ],
)
def test_a_result_that_does_not_fit_the_disk_names_its_file(folder, tmp_path, words):
    import resource

    names = {"space": folder / "space", "texts": folder / "texts.jsonl"}
    limits, out = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "out.jsonl"
    resource.setrlimit(resource.RLIMIT_FSIZE, (9, limits[1]))
    try:
        done = run(*[word.format(**names) for word in words], "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.exit_code == 1 and list(tmp_path.iterdir()) == []
    assert f"{out} cannot be written (File too large): nothing was changed" in done.stderr


def test_help_version_and_completion_start_without_torch(folder):
    code = "import sys; from whet.cli import main; main(['--version'], standalone_mode=False);"
    code += "print('torch' in sys.modules, 'sklearn' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "False False"


def test_selection_runs_without_torch_and_adaptation_names_its_extra(folder):
    def without_torch(*words):
        command = [sys.executable, "-c", NO_TORCH, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    space = folder / "without-torch"
    assert without_torch("index", folder / "texts.jsonl", space, "--quiet").returncode == 0
    assert without_torch("select", space, "alpha", *SMALL).stdout.count("\n") == 4
    refused = without_torch("generate", space, "alpha", *SMALL)
    assert refused.returncode == 1
    assert refused.stderr == "Error: torch is not installed: run `pip install 'whet[adapt]'`\n"


WITHOUT_EXTRAS = """
import importlib, sys
from whet.errors import EXTRAS, MissingDependencyError
sys.modules |= dict.fromkeys(name for names in EXTRAS.values() for name in names)
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
        print(module, "loaded")
    except MissingDependencyError as error:
        print(module, error)
"""
MODULES = {
    "whet.adapt.adapters": "adapt", "whet.adapt.decoding.sampling": "adapt",
    "whet.adapt.model": "adapt", "whet.adapt.session": "adapt", "whet.adapt.tuners.lora": "adapt",
    "whet.embed.hidden_states": "adapt", "whet.engine": "adapt", "whet.evaluate.runner": "adapt",
    "whet.integrations.llama_cpp": "adapt", "whet.evaluate.results": "space",
    "whet.evaluate.report.render": "space", "whet.evaluate.run_storage": "space",
    "whet.space.space": "space", "whet.serve.app": "serve", "whet.serve.main": "serve",
    "whet.serve.schemas.chat": "serve",
}  # fmt: skip


def test_a_module_names_the_extra_that_it_lacks():
    command = [sys.executable, "-c", WITHOUT_EXTRAS, *MODULES]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(MODULES)
    for line, extra in zip(lines, MODULES.values(), strict=True):
        assert line.endswith(f" is not installed: run `pip install 'whet[{extra}]'`"), line


def test_cli_page_is_current():
    page = ROOT / "docs" / "make_cli.py"
    subprocess.run([sys.executable, page, "--check"], check=True)
