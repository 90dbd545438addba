"""Options of embedders: prompts, shorter vectors, devices, static models, code of models."""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from support.manifests import sealed

from whet.embed.embedder import encode_queries
from whet.embed.registry import get_embedder
from whet.errors import ModelError, SpaceError
from whet.select.config import SelectionConfig
from whet.space.retrieve import Retriever
from whet.space.space import DataSpace

TEXTS = ["bees dance in the field", "honey keeps for years", "trains run late"]


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """The folder of a small static model, as model2vec saves it."""
    model2vec = pytest.importorskip("model2vec")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[UNK]", "[PAD]", *sorted({word for text in TEXTS for word in text.split()}), "query"]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    vectors = np.random.default_rng(0).standard_normal((len(words), 8)).astype("float32")
    folder = tmp_path_factory.mktemp("static")
    model2vec.StaticModel(vectors, tokenizer, config={"normalize": True}).save_pretrained(folder)
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"search": "query "}})
    )
    return folder


def test_static_models_of_model2vec_are_sentence_encoders(static):
    from model2vec import StaticModel

    expected = StaticModel.from_pretrained(static).encode(TEXTS)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(get_embedder(f"st:{static}").encode(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("prompt", ["search", "query "])
def test_prompts_go_in_front_of_queries_and_passages(static, prompt):
    plain = get_embedder(f"st:{static}")
    queries = get_embedder(f"st:{static}@query_prompt={prompt}")
    passages = get_embedder(f"st:{static}@passage_prompt={prompt}")
    wanted = plain.encode([f"query {text}" for text in TEXTS])
    for rows in (encode_queries(queries, TEXTS), passages.encode(TEXTS)):
        np.testing.assert_allclose(rows, wanted, atol=1e-6)
    for rows in (queries.encode(TEXTS), encode_queries(passages, TEXTS)):
        np.testing.assert_array_equal(rows, plain.encode(TEXTS))
    assert len({plain.fingerprint, queries.fingerprint, passages.fingerprint}) == 3
    assert get_embedder(queries.name).fingerprint == queries.fingerprint


def test_prompts_with_signs_survive_in_the_name(static):
    from whet.embed.sentence import SentenceEncoder

    encoder = SentenceEncoder(str(static), query_prompt="Instruct: a, b=c@d\nQuery: ü")
    again = get_embedder(encoder.name)
    np.testing.assert_array_equal(encode_queries(again, TEXTS), encode_queries(encoder, TEXTS))
    assert again.fingerprint == encoder.fingerprint


def test_a_retriever_embeds_its_prompt_as_a_query(static, tmp_path):
    space = DataSpace.build(TEXTS, tmp_path / "s", f"st:{static}@query_prompt=search")
    [query] = encode_queries(space.embedder, ["bees dance"])
    retrieval = Retriever(DataSpace.open(tmp_path / "s"), SelectionConfig(n=1)).select("bees dance")
    np.testing.assert_array_equal(retrieval.query, query)


def test_vectors_can_be_shorter(static):
    whole, short = get_embedder(f"st:{static}"), get_embedder(f"st:{static}@truncate_dim=3")
    rows = whole.encode(TEXTS)[:, :3]
    assert short.dimension == 3
    np.testing.assert_allclose(
        short.encode(TEXTS), rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6
    )
    with pytest.raises(ModelError, match="truncate_dim is 9, but the vectors of .* have 8 numbers"):
        get_embedder(f"st:{static}@truncate_dim=9")


@pytest.mark.parametrize("spec", ["st:{static}", "hf:whet-pico", "ntk:whet-pico"])
def test_the_device_is_an_option_that_is_not_stored(static, spec):
    spec = spec.format(static=static)
    assert get_embedder(f"{spec}@device=cpu").name == spec
    with pytest.raises((ModelError, RuntimeError), match="nowhere|device"):
        get_embedder(f"{spec}@device=nowhere")


def own_code(folder):
    """A model with a class of its own, whose import leaves a mark."""
    (folder / "code").mkdir(parents=True)
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own_code_of_a_model.Own"}])
    )
    (folder / "own_code_of_a_model.py").write_text(
        f"open({str(folder / 'mark')!r}, 'w').close()\n"
        "import torch\n"
        "class Own(torch.nn.Module):\n"
        "    config_keys = []\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.ones(1))\n"
        "    @classmethod\n"
        "    def load(cls, *args, **kwargs): return cls()\n"
        "    def tokenize(self, texts, **kwargs):\n"
        "        return {'n': torch.tensor([[len(t)] for t in texts])}\n"
        "    preprocess = tokenize\n"
        "    def forward(self, features, **kwargs):\n"
        "        n = features['n'].float()\n"
        "        features['sentence_embedding'] = torch.cat([n, torch.ones_like(n)], 1) * self.scale\n"
        "        return features\n"
        "    def get_sentence_embedding_dimension(self): return 2\n"
    )
    return folder


def test_a_models_own_code_runs_only_when_it_is_asked_for(tmp_path):
    folder = own_code(tmp_path / "model")
    with pytest.raises(ModelError, match="needs code of its own"):
        get_embedder(f"st:{folder}")
    assert not (folder / "mark").exists()
    space = DataSpace.build(TEXTS, tmp_path / "s", f"st:{folder}@trust_remote_code=true")
    assert (folder / "mark").exists() and space.embedder.name == f"st:{folder}"
    with pytest.raises(ModelError, match="needs code of its own"):
        DataSpace.open(tmp_path / "s")
    DataSpace.open(tmp_path / "s", f"st:{folder}@trust_remote_code=true")


def test_a_data_space_cannot_ask_for_code_to_run(tmp_path):
    folder = own_code(tmp_path / "model")
    DataSpace.build(TEXTS, tmp_path / "s")
    meta = json.loads((tmp_path / "s/meta.json").read_text())
    name = f"st:{folder}@trust_remote_code=true"
    (tmp_path / "s/meta.json").write_text(json.dumps(sealed(meta | {"embedder": name})))
    with pytest.raises(SpaceError, match="with trust_remote_code, which a data space cannot set"):
        DataSpace.open(tmp_path / "s")
    assert not (folder / "mark").exists()


@pytest.fixture(autouse=True)
def _packages():
    if find_spec("sentence_transformers") is None:
        pytest.skip("needs sentence-transformers")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "own_code_of_a_model" in name:
            del sys.modules[name]
