"""Configurations, methods, data, TOML files, and the parts of a document."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import eval_fixtures

from whet.adapt.config import AdapterOptions, TrainingConfig
from whet.errors import SourceError
from whet.evaluate.config import PLAIN_SELECTION, EvalConfig
from whet.evaluate.dataset import EvalData, Experiment
from whet.evaluate.tasks import ScoringTask
from whet.select.config import SelectionConfig

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_settings_come_from_toml_and_lines(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('n = 10\nmethods = ["nearest", "sift(0.1)"]\n[data]\nprompts = "p"\n')
    experiment = Experiment.read(config, ["n=20", "lr=1e-3", "leakage=whole", "data.per_set=3"])
    assert experiment.config.selection.n == 20 and experiment.config.adapter.lr == 1e-3
    assert experiment.config.leakage == "whole"
    assert experiment.data == EvalData(prompts="p", per_set=3)
    assert experiment.config.steps == (0, 1, 2, 5, 10, 20)


def test_a_protocol_sets_what_is_not_set_with_it(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('protocol = "paper"\nleft_context = false\n')
    paper = Experiment.read(config).config
    assert (paper.leakage, paper.training.long_texts, paper.left_context) == (
        "whole", "chunks", False,
    )  # fmt: skip
    assert paper.protocol == "paper" and paper.method("sift").training.long_texts == "chunks"
    for lines in (["long_texts=first", "protocol=held-out"], ["protocol=held-out"]):
        held_out = Experiment.read(config, lines).config
        assert (held_out.leakage, held_out.left_context) == ("split", True)
        first = "long_texts=first" in lines
        assert held_out.training.long_texts == ("first" if first else "chunks")
        assert held_out.protocol == (None if first else "held-out")
    assert paper.with_settings(protocol="held-out").protocol == "held-out"
    assert EvalConfig.from_table(paper.to_table()) == paper
    with pytest.raises(ValueError, match="protocol is 'leaky': expected paper or held-out"):
        Experiment.read(None, ["protocol=leaky"])
    with pytest.raises(ValueError, match="sets protocol, which applies to the whole run"):
        EvalConfig().method("sift(protocol=paper)")


def test_prompts_are_cut_and_left_out_by_length(tmp_path):
    lengths = [5, 30, 12, 50, 20]
    lines = [{"id": f"p{n}", "text": "é" * n} for n in lengths]
    prompts = eval_fixtures.write(tmp_path / "prompts.jsonl", lines)
    everything = EvalData(prompts=str(prompts)).read_prompts()
    data = EvalData(prompts=str(prompts), min_chars=12, max_chars=20, per_set=3)
    kept = [prompt.document for prompt in data.read_prompts().prompts]
    assert [d.id for d in kept] == ["p30", "p12", "p50"]
    assert [len(d.text) for d in kept] == [20, 12, 20]
    assert data.read_prompts().fingerprint != everything.fingerprint
    assert replace(data, max_chars=0).read_prompts().fingerprint == everything.fingerprint
    with pytest.raises(ValueError, match="max_chars is -1: expected 0 or more"):
        EvalData(max_chars=-1)


def test_nested_tables_and_flat_names_are_the_same_settings(tmp_path):
    nested = tmp_path / "nested.toml"
    nested.write_text(
        """
        [selection]
        n = 10
        lam = 0.1
        [training]
        order = "reversed"
        [adapter]
        name = "lora"
        r = 4
        [optimizer]
        name = "sgd"
        [[methods]]
        name = "nearest"
        [[methods]]
        name = "SIFT, trained fully"
        selector = "sift"
        selection.k = 20
        lam = 1
        """
    )
    flat = ["n=10", "lam=0.1", "order=reversed", "adapter=lora", "r=4", "optimizer=sgd"]
    from_flat = Experiment.read(None, flat).config
    config = Experiment.read(nested).config
    assert replace(config, methods=from_flat.methods) == from_flat
    first, second = config.method_configs
    assert first.selection.selector == "nearest" and first.selection.lam == 0.1
    assert second.name == "SIFT, trained fully" and second.selection.selector == "sift"
    assert (second.selection.k, second.selection.lam, second.adapter.r) == (20, 1.0, 4)


def test_a_method_has_settings_of_its_own():
    run = EvalConfig.from_table({"lam": 0.5, "adapter": "head"})
    nearest = run.method("nearest")
    assert nearest.selection == replace(run.selection, selector="nearest")
    assert nearest.adapter == run.adapter and nearest.training == run.training
    method = run.method("sift(0.1)")
    assert method.name == "sift(0.1)" and method.selection.lam == 0.1
    assert method.adapter.name == "head"
    both = run.method("sift(lam=1, adapter=lora, r=4, use=both)")
    assert both.selection.lam == 1.0 and both.use == "both"
    assert both.adapter == AdapterOptions(name="lora", r=4)
    dynamic = run.method("dynamic(lr=1e-3)")
    assert dynamic.train_on == "query" and dynamic.adapter.lr == 1e-3
    streaming = run.method("streaming(stream_tokens=8, adapter=lora)")
    assert (streaming.train_on, streaming.stream_tokens) == ("scored", 8)
    stored = replace(run, methods=(streaming,)).to_table()
    assert EvalConfig.from_table(stored).method_configs == (streaming,)
    with pytest.raises(ValueError, match="use is 'context': expected steps"):
        run.method("streaming(use=context)")
    where = run.method("""sift(0.1, where='kind in ["a", "(b)"]')""").selection
    assert where.where == 'kind in ["a", "(b)"]' and where.lam == 0.1
    assert run.method("sift(lam=auto, stop_alpha=auto)").selection.has_auto


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["lam=auto", "where='year > 2000'", "adapter=lora", "target_modules=['c_attn']"],
        ["methods=['sift(0.1)', {name='b', selector='sift', adapter='head', use='both'}]"],
        ["methods=[{name='q', train_on='query', seed=3}, {name='hull', gradient_reuse=2}]"],
    ],
)
def test_a_configuration_is_stored_and_read_back(lines):
    config = Experiment.read(None, lines).config
    assert EvalConfig.from_table(json.loads(json.dumps(config.to_table()))) == config


@pytest.mark.parametrize(
    "lines, message",
    [
        (["steps=3"], "unknown name 'steps': expected eps, eval_steps"),
        (["data.space_of=3"], r"--set data: unknown name 'space_of': expected space"),
        (["data=3"], "--set data is 3: expected a table"),
        (["selection=3"], "--set: selection is 3: expected a table"),
        (["selection.lr=3"], r"--set \[selection\]: unknown name 'lr'"),
        (["n=-1"], "n is -1"),
        (["n=0"], "n is 0"),
        (["lam=0"], "lam is 0"),
        (["stop_alpha=0"], "stop_alpha is 0"),
        (["chunks=1"], "chunks is 1: expected at least 2"),
        (["methods=['best']"], "selector is 'best': expected one of sift"),
        (["methods=['sift(0.1,0.2)']"], r"method 'sift\(0.1,0.2\)' sets lam twice"),
        (["methods=['sift(x)']"], "lam is 'x': expected a number or embedder or auto"),
        (["methods=['sift(0)']"], "lam is 0"),
        (["methods=['sift(n=3)']"], r"method 'sift\(n=3\)' sets n, which applies to the whole run"),
        (["methods=['sift(model=x)']"], "sets model, which applies to the whole run"),
        (["methods=['sift(speed=3)']"], "unknown name 'speed'"),
        (["methods=['sift(selector=mmr)']"], "sets selector twice"),
        (["methods=['sift(order=up)']"], "order is 'up': expected selected or reversed"),
        (["methods=['dynamic']", "leakage=whole"], "expected leakage split or score-first"),
        (["methods=['sift', 'sift']"], "expected each name once"),
        (["methods=[]"], "methods is empty"),
        (["methods=[3]"], "methods has 3: expected a name, or a table with a name"),
        (["methods=3"], "methods is 3: expected a list"),
        (["methods=[{selector='sift'}]"], "expected a name, or a table with a name"),
        (["methods=[{name='sift', selection.lam=1, lam=2}]"], "sets lam twice"),
        (["selector=sift"], "selector is chosen by each method: name it in methods"),
        (["leakage=none"], "leakage is 'none': expected split or whole or score-first"),
        (["left_context=perhaps"], "left_context is 'perhaps': expected true or false"),
        (["eval_steps=7"], "eval_steps is 7: expected a list in brackets, each item an integer"),
        (["adapter=lora", "r=2.5"], "r is 2.5: expected an integer"),
        (["where='year >'"], "year >"),
        (["gradient_reuse=0"], "gradient_reuse is 0"),
        (["long_texts=whole"], "long_texts is 'whole': expected first or chunks or random"),
        (["adapter=half"], "name is 'half'"),
        (["adapter=full", "r=3"], "adapter full: unknown name 'r'"),
        (["n 3"], "is not an assignment: expected KEY=VALUE"),
        (["data.share=0"], "data.share is 0"),
        (["data.per_set=-1"], "data.per_set is -1"),
    ],
)
def test_wrong_settings_are_refused(lines, message):
    with pytest.raises(ValueError, match=message):
        Experiment.read(None, lines)


@pytest.mark.parametrize(
    "old, new",
    [
        ("score_at=[1]", "eval_steps"),
        ("mode=lora", "adapter"),
        ("rank=4", "r"),
        ("optimiser=sgd", "optimizer"),
        ("clip=0", "max_grad_norm"),
        ("candidates=bm25", "retriever"),
        ("sign=both", "metric"),
        ("alpha=0.3", "stop_alpha"),
        ("texts_per_update=2", "batch_size"),
        ("reuse=2", "gradient_reuse"),
        ("carry=true", "persist_optimizer"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(old, new):
    message = f"'{old.partition('=')[0]}' is now called '{new}'"
    with pytest.raises(ValueError, match=message):
        Experiment.read(None, [old])
    if new != "eval_steps":
        with pytest.raises(ValueError, match=message):
            EvalConfig().method(f"sift({old})")


def test_a_file_that_is_no_toml_is_named(tmp_path):
    (tmp_path / "run.toml").write_text("n = = 3")
    with pytest.raises(ValueError, match="run.toml is not valid TOML"):
        Experiment.read(tmp_path / "run.toml")


def test_a_file_and_lines_over_it_are_values_of_their_fields(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("n = 3\nlr = 1\n[data]\nspace = 'a'\nsets = ['github']\n")
    config = Experiment.read(file, ['where=set == "github"', "data.space=b", "eval_steps=[1, 2]"])
    assert config.config == EvalConfig(
        eval_steps=(1, 2),
        selection=replace(PLAIN_SELECTION, n=3, where='set == "github"'),
        adapter=AdapterOptions(lr=1.0),
    )
    assert config.data == EvalData(space="b", sets=("github",))


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
    data = EvalData(prompts=prompts(tmp_path), per_set=2)
    assert [(p.document.id, p.set) for p in data.read_prompts().prompts] == [
        ("a0", "a"), ("b0", "b"), ("a1", "a"), ("b1", "b"),
    ]  # fmt: skip
    everything = EvalData(prompts=prompts(tmp_path)).read_prompts()
    assert len(everything.prompts) == 6
    assert everything.fingerprint == data.read_prompts().fingerprint


def test_some_sets_alone_and_missing_ones_are_named(tmp_path):
    path = prompts(tmp_path)
    assert {p.set for p in EvalData(prompts=path, sets=("b",)).read_prompts().prompts} == {"b"}
    with pytest.raises(SourceError, match="holds no prompts of set 'c', only of a, b"):
        EvalData(prompts=path, sets=("b", "c")).read_prompts()


def test_an_id_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(SourceError, match="two prompts of id 'same'"):
        EvalData(prompts=prompts(tmp_path, id="same")).read_prompts()


def test_a_share_is_drawn_by_the_text_alone(tmp_path):
    path = prompts(tmp_path, sets="abcd", each=100)
    half = {p.document.id for p in EvalData(prompts=path, share=0.5).read_prompts().prompts}
    less = {p.document.id for p in EvalData(prompts=path, share=0.1).read_prompts().prompts}
    assert 150 < len(half) < 250 and 20 < len(less) < 60 and less < half
    assert Experiment.read(EXAMPLES / "corpus.toml").config.method_names[-1].startswith("nearest")


def test_the_pile_is_read_by_the_layout_of_its_data_sets(tmp_path, monkeypatch):
    """Train files in a folder next to the others; val and test by themselves in a second one."""
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
    data = Experiment.read(Path("pile.toml"), ["data.share=1.0", "data.embedder=lsa"]).data
    assert data.source == "hf:./monology/pile-uncopyrighted" and len(data.sets) == 17
    data = replace(data, sets=("Github", "Pile-CC"))
    prompts = data.read_prompts().prompts
    assert sorted({p.set for p in prompts}) == ["Github", "Pile-CC"] and len(prompts) == 8
    assert {p.document.text for p in prompts} <= {eval_fixtures.text(60 + i) for i in range(12)}
    assert len(data.open_space(progress=False)) == 12 and Path(data.space).exists()


@pytest.mark.parametrize(("name", "count", "n"), [("nano", 8, 50), ("smollm2", 3, 20)])
def test_the_headline_studies_have_both_protocols(name, count, n):
    for protocol in ("paper", "held-out"):
        path = EXAMPLES.parent / "studies" / f"{name}.toml"
        config = Experiment.read(path, [f"protocol={protocol}"]).config
        assert config.protocol == protocol and config.selection.n == n
        assert len(config.method_names) == count and config.method_names[-1] == "whet"
        assert {method.adapter.name for method in config.method_configs} <= {"auto", "lora"}


def test_settings_of_whet_replace_what_it_stands_for():
    config = EvalConfig()
    whet, plain = config.method("whet"), config.method("sift")
    assert (whet.selection.copy_overlap, whet.training.learned_ratio) == (
        SelectionConfig().copy_overlap,
        TrainingConfig().learned_ratio,
    )
    assert (plain.selection.copy_overlap, plain.training.learned_ratio) == (0, 0)
    short = config.method("whet(learned_ratio=0.5)")
    table = config.method({"name": "whet", "learned_ratio": 0.5})
    assert short.training == table.training and short.training.learned_ratio == 0.5
    assert short.selection == whet.selection
