"""Terms of texts in any Unicode form and script, and data spaces of the first analyzer."""

import unicodedata

import numpy as np
import pytest

from whet.embed.lsa import LSA
from whet.embed.terms import legacy_terms, terms
from whet.space.bm25 import BM25

FORMS = [
    "Crêpes à Zürich",
    "ｆｕｌｌ　ｗｉｄｔｈ",
    "ﬁne ｶﾞﾗｽ",
    "हिन्दी किताब",
    "Việt Nam",
    "꿀벌이 춤춘다",
]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("text", FORMS)
def test_forms_of_a_text_have_the_same_terms(text, form):
    assert terms(unicodedata.normalize(form, text)) == terms(text)


def test_case_and_invisible_characters_do_not_count():
    assert terms("STRASSE soft\u00adly") == terms("straße softly") == ["strasse", "softly"]


UNSPACED = [("蜜蜂跳舞告诉同伴花在哪里", "蜜蜂"), ("ミツバチはダンスで花を知らせる", "ミツバチ"),
            ("ผึ้งเต้นรำเพื่อบอกทาง", "เต้นรำ"), ("ເຜິ້ງເຕັ້ນລຳ", "ເຕັ້ນ"), ("ឃ្មុំរាំដើម្បី", "រាំ"),
            ("ပျားများကခုန်သည်", "ကခုန်"), ("茶を飲む", "茶")]  # fmt: skip


@pytest.mark.parametrize("text, part", UNSPACED)
def test_texts_without_spaces_share_terms(text, part):
    texts = ["trains run on rails", text, "honey keeps for years"]
    assert BM25(texts).top_k(part, 1).tolist() == [1]
    lsa = LSA.fit(texts)
    assert np.argmax(lsa.encode(texts) @ lsa.encode([part])[0]) == 1


def test_ascii_has_the_terms_of_before():
    text = "def f(x_1): return x_1 + 2  # OK"
    assert terms(text) == legacy_terms(text)


def test_an_embedder_without_a_stored_analyzer_is_read_as_before(tmp_path):
    vocabulary, weights = ["cafe", "蜜蜂跳舞", "é"], np.eye(3, dtype=np.float32)
    old = LSA(vocabulary, weights, analyzer=1)
    old.save(tmp_path / "old")
    assert not (tmp_path / "old" / "analyzer.json").exists()
    again = LSA.load(tmp_path / "old")
    assert again.fingerprint == old.fingerprint != LSA(vocabulary, weights).fingerprint
    np.testing.assert_array_equal(again.encode(["蜜蜂跳舞"]), [[0, 1, 0]])
    new = LSA.fit(["蜜蜂跳舞", "café"])
    new.save(tmp_path / "new")
    assert LSA.load(tmp_path / "new").fingerprint == new.fingerprint
