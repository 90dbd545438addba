import json

import pytest
from click.testing import CliRunner

from whet.cli import main
from whet.data.filters import Compare
from whet.space.maintenance.diagnostics import diagnose
from whet.space.space import DataSpace

WORDS = "red green blue fox whale frog runs sings sleeps tree stone river".split()


def records(n):
    for i in range(n):
        text = " ".join(WORDS[(i * j) % 12] for j in (1, 5, 7)) + f" number {i}"
        yield {"id": f"d{i}", "text": text, "year": 2000 + i, "set": "ab"[i % 2]}


def whet(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_json(*arguments):
    result = whet(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def space(tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records(40)))
    assert whet("index", source, tmp_path / "s", "--quiet").exit_code == 0
    return tmp_path / "s"


def test_info_describes_the_data_space(space):
    info = run_json("space", "info", space)
    assert info["documents"] == 40 and info["embedder"] == "lsa" and info["segments"] == 1
    assert info["fields"] == {"id": "text", "year": "number", "set": "text"}
    assert info["index"] == {"kind": "flat", "segments": 0, "recall": 1.0, "probe_fraction": 1.0}
    plain = whet("space", "info", space)
    assert "documents   40" in plain.stdout and plain.exit_code == 0
    assert "index       none: exact search\n" in plain.stdout


def test_a_source_is_recorded_by_its_full_path(space, tmp_path, monkeypatch):
    whole = str(tmp_path / "texts.jsonl")
    assert run_json("space", "info", space)["source"] == whole
    monkeypatch.chdir(tmp_path)
    assert whet("index", "texts.jsonl", "other", "--quiet").exit_code == 0
    assert run_json("space", "info", "other")["source"] == whole


def test_verify_names_the_file_that_was_changed(space):
    assert "no file is damaged" in whet("space", "verify", space).stdout
    [file] = space.glob("segments/*/vectors.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = whet("space", "verify", space)
    assert result.exit_code == 1 and str(file) in result.stdout and "has 1 fault: " in result.stderr


def test_delete_compact_and_index_again(space, tmp_path):
    assert run_json("space", "delete", space, "d1", "d2", "nobody")["deleted"] == 2
    assert run_json("space", "delete", space, "--where", "year >= 2030")["deleted"] == 10
    assert (
        "0 deleted; no document has the id nobody"
        in whet("space", "delete", space, "nobody").stdout
    )
    assert run_json("space", "info", space)["deleted"] == 12
    compacted = run_json("space", "compact", space, "--quiet")
    assert compacted["bytes"] < compacted["bytes_before"]
    assert run_json("space", "info", space)["deleted"] == 0
    assert run_json("index", tmp_path / "texts.jsonl", space, "--quiet")["documents"] == 40
    for bad in (["d1", "--where", "year > 1"], []):
        assert whet("space", "delete", space, *bad).exit_code == 2


def test_an_export_can_be_indexed(space, tmp_path):
    out = tmp_path / "a" / "new" / "out.jsonl"
    assert whet("space", "export", space, "--where", 'set == "a"', "--out", out).exit_code == 0
    assert run_json("index", out, tmp_path / "again", "--quiet")["documents"] == 20
    lines = whet("space", "export", space).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"d{i}" for i in range(40)]
    assert whet("space", "export", space, "--out", out).exit_code == 1  # it is there


def test_an_export_that_fails_leaves_nothing(space, tmp_path):
    out = tmp_path / "out.jsonl"
    before = sorted(tmp_path.iterdir())
    assert whet("space", "export", space, "--where", "sett == 1", "--out", out).exit_code == 2
    assert sorted(tmp_path.iterdir()) == before
    assert whet("space", "export", space, "--out", out).exit_code == 0


def test_a_filter_applies_and_a_wrong_one_is_an_error(space):
    command = ["select", space, "red fox runs", "-n", 9, "-k", 20]
    picks = run_json(*command, "--where", 'set == "b"')["picks"]
    assert all(int(pick["id"][1:]) % 2 for pick in picks)
    messages = {
        "sett == 1": "'sett' is in no document",
        "year ==": "cannot be read",
        "year == 'a'": "holds number",
        "set == 5": 'but it holds text: write it in quotes, as "5"',
        "year": "expected `field == value`",
    }
    for wrong, message in messages.items():
        result = whet(*command, "--where", wrong)
        assert result.exit_code == 2 and message in result.stderr, result.stderr
    few = whet(*command, "--where", "year < 2003")
    assert few.exit_code == 2 and "k is 20, but 3 documents pass the filter" in few.stderr


def test_doctor_counts_duplicates_and_prompts_in_the_space(space, tmp_path):
    texts = [record["text"] for record in records(3)]
    more = [{"id": f"t{i}", "text": text} for i, text in enumerate(texts)]
    more.append({"id": "blank", "text": "ﷺ"})
    source, prompts = tmp_path / "more.jsonl", tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in more))
    assert whet("index", source, space, "--quiet").exit_code == 0
    texts_of_prompts = [texts[0], texts[1] + " more", "red whale", "ﷲ"]
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts_of_prompts))
    diagnosis = run_json("space", "doctor", space, "--prompts", prompts, "-k", 20, "-n", 9)
    assert diagnosis["documents"] == 44 and diagnosis["duplicates"] == 3 and diagnosis["blank"] == 1
    assert (
        diagnosis["prompts"] == 4
        and diagnosis["exact_matches"] == 1
        and diagnosis["unmatched"] == 1
    )
    assert 0 <= diagnosis["sigma_limit"] <= diagnosis["sigma"] < 0.7
    assert diagnosis["verdict"].startswith("adaptation should pay: σ falls to")
    assert "1 of 4 prompts are in the data space, so a model has seen" in diagnosis["verdict"]
    without_prompts = run_json("space", "doctor", space)
    assert without_prompts["sigma"] is without_prompts["sigma_limit"] is None
    assert without_prompts["verdict"].startswith("no verdict: give prompts (--prompts FILE)")
    assert "44 documents: 3 duplicates" in whet("space", "doctor", space).stdout


def test_doctor_of_a_filtered_space_sees_only_what_passes(space):
    opened = DataSpace.open(space)
    text = opened.text(1)
    bound = opened.filter(Compare("set", "==", "a"))
    assert diagnose(opened, [text], n=5, k=20).exact_matches == 1
    assert diagnose(bound, [text], n=5, k=20).exact_matches == 0
    assert diagnose(bound, [text], n=5, k=20).documents == 20


def test_documents_with_unpaired_surrogates_are_listed_and_the_rest_added(tmp_path):
    halves = [r'{"id": "x\ud800", "text": "a"}', r'{"id": "m", "text": "b", "k": ["\udcff"]}']
    good = ['{"id": "g", "text": "red fox", "n": NaN}', '{"id": "h", "text": "blue whale"}']
    source = tmp_path / "texts.jsonl"
    source.write_text("\n".join(halves + good))
    made = run_json("index", source, tmp_path / "s", "--quiet")
    assert (made["documents"], made["failed"]) == (2, 2)
    failed = map(json.loads, (tmp_path / "s" / "failed.jsonl").read_text().splitlines())
    assert [(f["id"], f["reason"]) for f in failed] == [
        ("x\ud800", "its id has an unpaired surrogate at position 1"),
        ("m", "its metadata has an unpaired surrogate at position 8"),
    ]
    exported = whet("space", "export", tmp_path / "s").stdout
    assert "NaN" not in exported and json.loads(exported.splitlines()[0])["meta"] == {"n": None}


def test_labels_are_chosen_when_a_space_is_built(tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records(40)))
    labels = ["--label-field", "set", "--public-label", "a", "--quiet"]
    refused = whet("index", source, tmp_path / "s", "--label-field", "set", "--quiet")
    assert refused.exit_code == 2 and "name the label of the public ones" in refused.stderr
    assert whet("index", source, tmp_path / "s", *labels).exit_code == 0
    assert run_json("space", "info", tmp_path / "s")["labels"] == {"field": "set", "public": "a"}
    assert whet("index", source, tmp_path / "s", *labels).exit_code == 0
    other = whet("index", source, tmp_path / "s", "--label-field", "year", "--quiet")
    assert other.exit_code == 1 and "chosen when a data space is created" in other.stderr
    assert whet("index", source, tmp_path / "t", "--public-label", "a").exit_code == 2


def test_a_copy_in_milvus_is_selected_from_by_its_address(space, tmp_path):
    pytest.importorskip("milvus_lite", reason="milvus-lite is missing (extra: test)")
    address = f"milvus:{tmp_path / 'copy.db'}#records"
    assert run_json("space", "copy", space, address, "--quiet")["documents"] == 40
    command = ["red fox runs", "-n", 3, "-k", 10]
    picks = run_json("select", address, *command)["picks"]
    assert [pick["id"] for pick in picks] == [
        pick["id"] for pick in run_json("select", space, *command)["picks"]
    ]


def test_indexing_an_export_forgets_the_words_of_deleted_documents(tmp_path):
    records = [{"id": f"d{i}", "text": f"honey bees {i}", "label": "public"} for i in range(5)]
    records.append({"id": "leak", "text": "honey xyzzycorp", "label": "public"})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    labels = ["--label-field", "label", "--public-label", "public", "--quiet"]
    old, new, export = tmp_path / "old", tmp_path / "new", tmp_path / "export.jsonl"
    for arguments in (
        ["index", tmp_path / "a.jsonl", old, *labels],
        ["space", "delete", old, "leak"],
        ["space", "compact", old],
        ["space", "export", old, "--out", export],
        ["index", export, new, *labels],
    ):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
    assert "xyzzycorp" in (old / "embedder" / "terms.json").read_text()
    assert "xyzzycorp" not in (new / "embedder" / "terms.json").read_text()
    assert DataSpace.open(new).ids == DataSpace.open(old).ids
