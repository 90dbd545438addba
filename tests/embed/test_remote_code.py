"""Opening a data space runs no code that came with it, and says which model it loads."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from support.manifests import sealed

import whet
from whet.adapt.model import LanguageModel
from whet.embed.registry import get_embedder
from whet.errors import EmbedderMismatchError, ModelError, SpaceError
from whet.space.space import DataSpace


def evil_folder(folder, type_="evil.Evil"):
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": type_}])
    )
    (folder / "config_sentence_transformers.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    (folder / "evil.py").write_text("raise SystemExit('code ran')\nclass Evil: pass\n")
    return folder


def renamed(path, embedder):
    """The data space at `path` with another embedder in its manifest."""
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(sealed(meta | {"embedder": embedder})))


def test_sentence_encoders_with_own_code_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"needs code of its own \(evil.Evil\)"):
        get_embedder(f"st:{evil_folder(tmp_path / 'model')}")


@pytest.mark.parametrize("spec", ["st:s/model", "st:./s/model", "hf:s/model", "st:../s/model"])
def test_a_space_that_names_a_relative_folder_is_refused(tmp_path, monkeypatch, spec):
    DataSpace.build(["honey bees", "ants"], tmp_path / "s")
    evil_folder(tmp_path / "s" / "model")
    renamed(tmp_path / "s", spec)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpaceError, match="relative to the current folder"):
        DataSpace.open("s")


def test_opening_a_space_downloads_no_model(tmp_path, monkeypatch):
    path = DataSpace.build(["honey bees", "ants"], tmp_path / "s").path
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("connected"))
    for spec in ("hf:someone/model", "st:someone/model", "ntk:gpt2@dimension=64"):
        renamed(path, spec)
        remedy = rf"downloads nothing.* as `DataSpace.open\(path, '{spec}'\)`, or set WHET_ALLOW_"
        with pytest.raises(ModelError, match=remedy):
            DataSpace.open(path)
    renamed(path, r"hf:C:\models\gpt2")
    with pytest.raises(SpaceError, match="by a path of Windows: load the same model"):
        DataSpace.open(path)


def test_a_model_in_the_local_cache_is_opened(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    snapshot = cache / "models--someone--pico" / "snapshots" / ("0" * 40)
    (cache / "models--someone--pico" / "refs").mkdir(parents=True)
    (cache / "models--someone--pico" / "refs" / "main").write_text("0" * 40)
    shutil.copytree(Path(whet.__file__).parent / "assets" / "whet-pico", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    built = DataSpace.build(["honey bees", "ants"], tmp_path / "s", "hf:someone/pico")
    assert DataSpace.open(tmp_path / "s").embedder.name == "hf:someone/pico"
    (snapshot / "tokenizer_config.json").write_text('{"added": 1}')
    with pytest.raises(EmbedderMismatchError, match="other weights, configuration or tokenizer"):
        DataSpace.open(built.path)


def test_models_with_own_code_are_refused_without_a_question(tmp_path):
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('code ran')\n")
    with pytest.raises(ModelError, match="needs code of its own|cannot load model"):
        LanguageModel.from_pretrained(str(tmp_path))


def test_the_model_of_a_space_is_logged(tmp_path, caplog):
    DataSpace.build(["honey bees", "ants walk"], tmp_path / "s", "hf:whet-pico")
    with caplog.at_level(logging.INFO):
        DataSpace.open(tmp_path / "s")
    assert any("embedder: hf:whet-pico" in message for message in caplog.messages)
