import json

import pytest

from whet.data.documents import iter_documents, read_documents, to_documents
from whet.errors import SourceError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What do bees do?"},
    {"role": "assistant", "content": "They dance."},
]
TEXT = "System: Be brief.\n\nUser: What do bees do?\n\nAssistant: They dance."


def documents(tmp_path, *records):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(iter_documents(path))


def test_conversations_are_readable_and_keep_their_roles(tmp_path):
    parts = [
        CHAT[0],
        CHAT[1] | {"content": [{"type": "text", "text": CHAT[1]["content"]}]},
        CHAT[2],
    ]
    pair = {"prompt": "What do bees do?", "response": "They dance.", "system": "Be brief."}
    completion = pair | {"completion": pair["response"]}
    del completion["response"]
    for record in ({"messages": CHAT}, {"messages": parts}, pair, completion):
        [document] = documents(tmp_path, record | {"id": "x", "topic": "bees"})
        assert (document.id, document.text) == ("x", TEXT)
        assert document.meta == {"topic": "bees", "messages": CHAT}


def test_conversations_come_from_tables_and_objects(tmp_path):
    (tmp_path / "d.csv").write_text("prompt,response,n\nWhy?,So.,1\n")
    [document] = read_documents(tmp_path / "d.csv")
    assert document.text == "User: Why?\n\nAssistant: So."
    [again] = to_documents([{"prompt": "Why?", "response": "So."}])
    assert again.text == document.text


def test_a_record_with_a_text_keeps_its_other_fields(tmp_path):
    [document] = documents(tmp_path, {"text": "a", "prompt": "b"})
    assert (document.text, document.meta) == ("a", {"prompt": "b"})


HALVES = [
    ({"prompt": "Why?"}, "has a field 'prompt' but no 'response': expected both"),
    ({"response": "So."}, "has a field 'response' but no 'prompt'"),
    ({"prompt": "Why?", "response": ""}, "but an empty 'response'"),
    ({"prompt": "Why?", "response": None}, "but an empty 'response'"),
    ({"prompt": 3, "response": "So."}, "field 'prompt' holds int, expected a string"),
    ({"messages": []}, "field 'messages' holds list, expected a list of messages"),
    ({"messages": CHAT[:2]}, "field 'messages' has no message of the assistant"),
    ({"messages": [*CHAT, CHAT[1]]}, "the last message is the user's: expected a reply"),
    ({"messages": [{"role": "bee", "content": "x"}]}, "message 1 of 1 has the role 'bee'"),
    ({"messages": [{"role": "user", "content": 3}]}, "message 1 of 1 has no text as `content`"),
    ({"messages": ["x"]}, "message 1 of 1 has the role None"),
]


@pytest.mark.parametrize("record, message", HALVES)
def test_half_of_a_pair_is_one_clear_line(tmp_path, record, message):
    good, problem = documents(tmp_path, {"text": "a"}, record)
    assert isinstance(problem, SourceError) and good.text == "a"
    assert "d.jsonl, line 2: " in str(problem) and message in str(problem)
