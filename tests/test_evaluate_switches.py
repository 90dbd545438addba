"""What a run is asked to do: switches, methods, data, TOML, and the parts of a document."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import eval_fixtures

from whet.errors import SourceError
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import Config, Data
from whet.evaluate.tasks import ScoringTask

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_switches_come_from_toml_and_lines(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('n = 10\nmethods = ["nearest", "sift(0.1)"]\n[data]\nprompts = "p"\n')
    made = Config.read(config, ["n=20", "lr=1e-3", "leakage=whole", "data.per_set=3"])
    assert (made.switches.n, made.switches.lr, made.switches.leakage) == (20, 1e-3, "whole")
    assert made.data == Data(prompts="p", per_set=3)
    assert made.switches.steps == (0, 1, 2, 5, 10, 20)


def test_a_method_has_switches_of_its_own():
    run = EvalConfig(lam=0.5, mode="head")
    assert run.method("nearest").switches == run
    method = run.method("sift(0.1)")
    assert method.name == "sift" and method.switches.lam == 0.1 and method.switches.mode == "head"
    both = run.method("sift(lam=1, mode=lora, rank=4, use=both)").switches
    assert (both.lam, both.mode, both.rank, both.use) == (1.0, "lora", 4, "both")
    assert run.method("dynamic(lr=1e-3)").name == "dynamic"
    where = run.method("""sift(0.1, where='kind in ["a", "(b)"]')""").switches
    assert where.where == 'kind in ["a", "(b)"]' and where.lam == 0.1


@pytest.mark.parametrize(
    "lines, message",
    [
        (["steps=3"], "sets 'steps': expected model, dtype, device, methods"),
        (["data.space_of=3"], "--set data sets 'space_of': expected space, source"),
        (["data=3"], "--set data is 3: expected a table"),
        (["n=-1"], "n is -1"),
        (["lam=0"], "lam is 0"),
        (["alpha=0"], "alpha is 0"),
        (["chunks=1"], "chunks is 1: expected at least 2"),
        (["methods=['best']"], "selector is 'best': expected one of sift"),
        (["methods=['sift(0.1,0.2)']"], r"method 'sift\(0.1,0.2\)' sets lam twice"),
        (["methods=['sift(x)']"], "lam is 'x': expected a number"),
        (["methods=['sift(0)']"], "lam is 0"),
        (["methods=['sift(n=3)']"], r"method 'sift\(n=3\)' sets n, which is of the whole run"),
        (["methods=['sift(speed=3)']"], "sets 'speed'"),
        (["methods=['sift(order=up)']"], "order is 'up': expected selected or reversed"),
        (["methods=['dynamic']", "leakage=whole"], "expected leakage split or score-first"),
        (["methods=['sift', 'sift']"], "expected each once"),
        (["methods=[]"], "methods is empty"),
        (["leakage=none"], "leakage is 'none': expected split or whole or score-first"),
        (["left_context=perhaps"], "left_context is 'perhaps': expected true or false"),
        (["score_at=7"], "score_at is 7: expected a list, each of it a whole number"),
        (["mode=lora", "rank=2.5"], "rank is 2.5: expected a whole number"),
        (["where=3"], "where is 3: expected a text"),
        (["reuse=0"], "reuse is 0"),
        (["long_texts=whole"], "long_texts is 'whole': expected first or chunks or random"),
        (["mode=half"], "mode is 'half'"),
        (["rank=3"], "mode full has no option rank"),
        (["n 3"], "sets nothing: expected KEY=VALUE"),
        (["data.share=0"], "data.share is 0"),
        (["data.per_set=-1"], "data.per_set is -1"),
    ],
)
def test_wrong_switches_are_refused(lines, message):
    with pytest.raises(ValueError, match=message):
        Config.read(None, lines)


def test_a_file_that_is_no_toml_is_named(tmp_path):
    (tmp_path / "run.toml").write_text("n = = 3")
    with pytest.raises(ValueError, match="run.toml is not TOML"):
        Config.read(tmp_path / "run.toml")


def test_a_file_and_lines_over_it_are_values_of_their_fields(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("n = 3\nlr = 1\n[data]\nspace = 'a'\nsets = ['github']\n")
    config = Config.read(file, ['where=set == "github"', "data.space=b", "score_at=[1, 2]"])
    assert config.switches == EvalConfig(n=3, lr=1.0, where='set == "github"', score_at=(1, 2))
    assert config.data == Data(space="b", sets=("github",))


@given(text=st.text(min_size=6, max_size=60), chunks=st.integers(2, 6))
def test_the_parts_of_a_document_lose_no_character(text, chunks):
    (half,) = ScoringTask.of(text, EvalConfig())
    assert half.query + half.text == text and half.context == half.query
    assert abs(len(half.query) - len(half.text)) <= 1
    parts = ScoringTask.of(text, EvalConfig(leakage="score-first", chunks=chunks))
    assert "".join(part.text for part in parts) == text and len(parts) == chunks
    assert all(text.startswith(part.query + part.text) for part in parts)
    (whole,) = ScoringTask.of(text, EvalConfig(leakage="whole"))
    assert whole == ScoringTask(text, "", text)
    assert ScoringTask.of(text, EvalConfig(left_context=False))[0].context == ""


def prompts(tmp_path, sets="ab", each=3, **fields):
    records = [{"id": f"{s}{i}", "text": f"{s}{i}", "meta": {"set": s}} for s in sets
               for i in range(each)]  # fmt: skip
    return str(
        eval_fixtures.write(tmp_path / "prompts.jsonl", [record | fields for record in records])
    )


def test_the_first_of_each_set_come_in_turn(tmp_path):
    data = Data(prompts=prompts(tmp_path), per_set=2)
    assert [(p.document.id, p.set) for p in data.read().prompts] == [
        ("a0", "a"), ("b0", "b"), ("a1", "a"), ("b1", "b"),
    ]  # fmt: skip
    everything = Data(prompts=prompts(tmp_path)).read()
    assert len(everything.prompts) == 6
    assert everything.fingerprint == data.read().fingerprint


def test_some_sets_alone_and_missing_ones_are_named(tmp_path):
    path = prompts(tmp_path)
    assert {p.set for p in Data(prompts=path, sets=("b",)).read().prompts} == {"b"}
    with pytest.raises(SourceError, match="holds no prompts of set 'c', only of a, b"):
        Data(prompts=path, sets=("b", "c")).read()


def test_an_id_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(SourceError, match="two prompts of id 'same'"):
        Data(prompts=prompts(tmp_path, id="same")).read()


def test_a_share_is_drawn_by_the_text_alone(tmp_path):
    path = prompts(tmp_path, sets="abcd", each=100)
    half = {p.document.id for p in Data(prompts=path, share=0.5).read().prompts}
    less = {p.document.id for p in Data(prompts=path, share=0.1).read().prompts}
    assert 150 < len(half) < 250 and 20 < len(less) < 60 and less < half
    assert Config.read(EXAMPLES / "corpus.toml").switches.methods[-1].startswith("nearest")


def test_the_pile_is_read_by_the_layout_of_its_data_sets(tmp_path, monkeypatch):
    """Train files in a folder beside the others; val and test by themselves in a second one."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    files = ("monology/pile-uncopyrighted/train/00", "monology/pile-uncopyrighted/val")
    for first, name in enumerate(
        [*files, "EleutherAI/pile_val_test/val", "EleutherAI/pile_val_test/test"]
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        sets = ("Github", "Pile-CC", "Books3")
        eval_fixtures.write(Path(f"{name}.jsonl"), [
            {"text": eval_fixtures.text(20 * first + i), "meta": {"pile_set_name": sets[i % 3]}}
            for i in range(12)
        ])  # fmt: skip
    toml = (EXAMPLES / "pile.toml").read_text().replace("hf:", "hf:./")
    Path("pile.toml").write_text(toml)
    data = Config.read(Path("pile.toml"), ["data.share=1.0", "data.embedder=lsa"]).data
    assert data.source == "hf:./monology/pile-uncopyrighted" and len(data.sets) == 17
    data = replace(data, sets=("Github", "Pile-CC"))
    prompts = data.read().prompts
    assert sorted({p.set for p in prompts}) == ["Github", "Pile-CC"] and len(prompts) == 8
    assert {p.document.text for p in prompts} <= {eval_fixtures.text(60 + i) for i in range(12)}
    assert len(data.opened(progress=False)) == 12 and Path(data.space).exists()
