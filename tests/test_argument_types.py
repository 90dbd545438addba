"""Arguments of a wrong type raise a ValueError of one line.

The calls run in a process of their own, without the import hook that checks types in other tests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny_models

RUN = """
import json, sys
from pathlib import Path
import whet
from whet import DataSpace, Document, Engine, LanguageModel, Request, Retriever
model = LanguageModel.from_pretrained("model", device="cpu")
s = DataSpace.build(["red fox", "blue whale", "red whale"], "space")
engine = Engine(s, model, selection=whet.SelectionConfig(n=1))
assert Engine(s, model, "lora").adapter == model.adapter_config("lora")
class Unfinished:
    name, dimension = "words", 3
    def __repr__(self): return "Unfinished()"
class Tokens(dict): pass
def message(call):
    try:
        eval(call)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
print(json.dumps([message(call) for call in json.load(sys.stdin)]))
"""
CASES = {
    "whet.sift(None, [[1.0, 0.0]], 1)": "query ",
    "whet.sift(0.5, [[1.0, 0.0]], 1)": "query has shape ()",
    "Retriever('space')": "space is 'space': expected a DataSpace, as `whet.DataSpace.open('",
    "Retriever(None)": "space is None: expected a DataSpace",
    "Retriever(s, whet.SelectionConfig(selector='closest'))": "selector is 'closest': expected o",
    "Retriever(s, whet.SelectionConfig(where=5))": "where is 5: expected a text such as",
    "whet.SelectionConfig(retriever='words')": "retriever is 'words': expected dense or bm25 or",
    "s.filter(None)": "where is None: expected a filter, or a text",
    "Retriever(s).select(['a', 'b'], 1)": "prompt is ['a', 'b']: expected one text",
    "Retriever(s).select(None, 1)": "prompt is None: expected one text",
    "Retriever(s).select('fox', 1).to_context(8, count_tokens=lambda text: Tokens())": (
        "count_tokens returned a Tokens: expected an integer, as lambda text: len("
    ),
    "DataSpace.build(Document('a', 'b'), 'new/one')": "docs is Document(id='a', text='b', meta={})",
    "DataSpace.build(None, 'new/one')": "docs is None: expected a list of texts, mappings or",
    "DataSpace.build(5, 'new/one')": "docs is 5: expected a list of texts, mappings or documents",
    "DataSpace.build(b'ab', 'new/one')": "docs is b'ab': expected a list of texts, mappings or",
    "whet.random_selection([1.0], [[1.0]], 1, seed=-1)": "seed is -1: expected a whole number, 0",
    "whet.random_selection([1.0], [[1.0]], 1, seed=0.5)": "seed is 0.5: expected a whole number, 0",
    "whet.TrainingConfig(seed='a')": "seed is 'a': expected a whole number, 0 or more",
    "engine.generate('fox', seed='a')": "seed is 'a': expected a whole number of at most 63 bits",
    "engine.generate('fox', seed=2**70)": "seed is 1180591620717411303424: expected a whole number",
    "LanguageModel.from_pretrained(3)": "model is 3: expected a name, a folder or a file",
    "LanguageModel.from_pretrained('model', dtype='float8')": "dtype is 'float8': expected auto or",
    "s.filter('a contains 3')": "filter 'a contains 3' cannot be read (invalid syntax): expected comp",
    "DataSpace.build(['a b'], 'new/one', 'x')": "embedder is 'x': expected lsa, minilm, st:NAME",
    "DataSpace.build(['a b'], 'new/one', 4)": "embedder is 4, without name: expected a",
    "DataSpace.build(['a b'], 'new/one', Unfinished())": (
        "embedder is Unfinished(), without fingerprint: expected a string such as 'lsa'"
    ),
    "DataSpace.open('space', 5)": "embedder is 5, without name: expected a string such as 'lsa'",
    "whet.training_set(s, 'fox', 2)": "targets is 'fox': expected a list of them, as ['fox']",
    "Engine('space', model)": "space is 'space': expected a DataSpace",
    "Engine(s, 'whet-nano')": "model is 'whet-nano': expected a LanguageModel, such as",
    "Engine(s, model, 'LoRA')": "adapter is 'LoRA': expected full, lora, head",
    "engine.generate(['a'])": "prompt is ['a']: expected one text",
    "list(engine.generate_many([{'prompt': 'x'}]))": "request is {'prompt': 'x'}: expected a text",
    "Request('x', selection=4)": "selection is 4: expected a whet.SelectionConfig",
    "whet.TrainingConfig(order='sideways')": "order is 'sideways': expected selected or reversed",
    "Request('x', documents=['a text'])": "documents contains 'a text': expected a Document",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    tiny_models.save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def messages(folder):
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(list(CASES)), text=True, cwd=folder,
        capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("call", CASES)
def test_a_wrong_type_is_an_error_of_one_line(messages, call):
    assert messages[call].startswith("ValueError: " + CASES[call]) and "\n" not in messages[call]


def test_a_rejected_embedder_leaves_no_files(messages, folder):
    assert not Path(folder / "new").exists()
