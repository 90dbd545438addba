"""Passages of texts with sections: where they are cut and what their metadata says."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.office import pdf

from whet.data.chunking import WORD, cut_at_sections
from whet.data.documents import read_documents
from whet.data.formats.sections import Section
from whet.data.messages import passage_messages

TEXTS = st.text("ab .\n", max_size=80)
SECTIONS = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 3)), max_size=8)


def read(tmp_path, name, content, rule):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_documents(path, chunks=rule))


@given(text=TEXTS, places=SECTIONS, size=st.integers(1, 12))
def test_passages_follow_each_other_within_the_limit(text, places, size):
    sections = [Section(start, level) for start, level in sorted(places)]
    spans = cut_at_sections(text, sections, size)
    assert "".join(text[a:b] for a, b in spans).split() == "".join(text).split()
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert all(len(WORD.findall(text[a:b])) <= size for a, b in spans)


def test_prose_is_cut_at_headings_and_paragraphs(tmp_path):
    body = "\n\n".join(["one two three four five."] * 3)
    text = f"# A\n\n{body}\n\n## B\n\n{body}\n\n## C\n\nshort\n\n# D\n\n{body}\n"
    passages = read(tmp_path, "a.md", text, "passages:22")
    assert "".join(passage.text for passage in passages) == text
    assert [(p.text.split("\n")[0], p.meta["heading"]) for p in passages] == [
        ("# A", "A"), ("## B", "A > B"), ("## C", "A > C"), ("# D", "D"),
    ]  # fmt: skip
    assert passages[1].id == "a.md#1" and passages[1].meta["parent"] == "a.md"
    long = read(tmp_path, "b.md", f"# A\n\n{body}\n\n{body}\n", "passages:22")
    assert len(long) == 2 and {passage.meta["heading"] for passage in long} == {"A"}
    [short] = read(tmp_path, "c.md", "# A\n\nshort\n", "passages:22")
    assert (short.id, short.meta) == ("c.md", {"heading": "A"})


def test_code_is_cut_at_definitions(tmp_path):
    text = "import os\n\n\n" + "".join(
        f"# about f{i}\ndef f{i}():\n    return {i} + {i} + {i} + {i}\n\n\n" for i in range(3)
    )
    passages = read(tmp_path, "a.py", text, "passages:22")
    assert "".join(passage.text for passage in passages) == text
    assert [p.meta["symbol"] for p in passages] == ["f0", "f1", "f2"]
    assert passages[1].text.startswith("# about f1")


def test_passages_of_a_pdf_know_their_page(tmp_path):
    pages = [[f"page {i} word word word word"] * 4 for i in range(3)]
    passages = read(tmp_path, "a.pdf", pdf(pages), "passages:30")
    assert [passage.meta["page"] for passage in passages] == [1, 2, 3]


def test_passages_of_a_conversation_hold_their_messages(tmp_path):
    words = " ".join(["word"] * 12)
    messages = [
        {"role": role, "content": f"{role} {i}. {words}"}
        for i in range(3)
        for role in ("user", "assistant")
    ]
    passages = read(tmp_path, "a.jsonl", json.dumps({"messages": messages}) + "\n", "passages:40")
    assert [passage.meta["messages"] for passage in passages] == [
        messages[:2], messages[2:4], messages[4:],
    ]  # fmt: skip
    assert passages[0].text.startswith("User: user 0. word")
    [whole] = read(tmp_path, "a.jsonl", json.dumps({"messages": messages}) + "\n", "whole")
    assert whole.meta["messages"] == messages


@pytest.mark.parametrize("start, stop", [(0, 9), (4, 30), (0, 100), (14, 16)])
def test_messages_of_a_passage_are_its_text_without_the_roles(start, stop):
    messages = [
        {"role": "user", "content": "abcdefgh"},
        {"role": "assistant", "content": "xyz xyz"},
    ]
    text = "User: abcdefgh\n\nAssistant: xyz xyz"
    held = passage_messages(messages, text, start, stop)
    assert all(message["content"] in text[start:stop] for message in held)
    plain = text[start:stop].replace("User:", "").replace("Assistant:", "")
    assert len("".join(m["content"] for m in held).split()) <= len(plain.split())
