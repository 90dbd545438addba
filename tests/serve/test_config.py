"""The configuration of the server."""

import re

import pytest
from support.paths import ROOT

from whet.adapt.config import TrainingConfig
from whet.config import config_fields
from whet.select.config import SelectionConfig
from whet.serve.config import ServeConfig, is_loopback


def test_paths_are_relative_to_the_file_and_overrides_win(tmp_path):
    file = tmp_path / "whet.toml"
    file.write_text(
        'port = 9\napi_keys = "k.toml"\nadapters = ["lora", "head"]\n'
        '[spaces]\ndocs = "d.whet"\n[limits]\nn = 3\n'
    )
    config = ServeConfig.read(file, port=10, model=None)
    assert config.spaces == {"docs": tmp_path / "d.whet"}
    assert config.api_keys == tmp_path / "k.toml"
    assert config.port == 10 and config.limits.n == 3 and config.adapters == ("lora", "head")


@pytest.mark.parametrize(
    "text", ["ports = 1", 'port = "1"', "port = 70000", "[limits]\nm = 1", "spaces = 3",
             "slots = 0", "[spaces]\n'a/b' = 'c'", "adapters = []", 'adapters = ["all"]', "=",
             "cache_mib = -1", "name = 'llama@v2'", "[adapter]\nname = 'head'"],
)  # fmt: skip
def test_invalid_configuration_is_an_error(tmp_path, text):
    file = tmp_path / "whet.toml"
    file.write_text(text + ("" if "spaces" in text else '\n[spaces]\ndocs = "d"\n'))
    with pytest.raises(ValueError):
        ServeConfig.read(file)


def test_other_hosts_need_api_keys(tmp_path):
    spaces = {"docs": tmp_path}
    for host in ("0.0.0.0", "::", "example.org", ""):
        with pytest.raises(ValueError, match="api_keys"):
            ServeConfig(spaces=spaces, host=host)
        ServeConfig(spaces=spaces, host=host, api_keys=tmp_path / "keys.toml")
    assert is_loopback("127.0.0.9") and is_loopback("::1") and is_loopback("localhost")


def test_tables_set_the_nested_configurations(tmp_path):
    file = tmp_path / "whet.toml"
    file.write_text(
        'adapters = ["lora", "head"]\n[spaces]\ndocs = "d"\n[selection]\nn = 9\nlam = "auto"\n'
        '[adapter]\nr = 8\nlr = 1e-3\n[training]\nbatch_size = 2\n[optimizer]\nname = "sgd"\n'
    )
    config = ServeConfig.read(file)
    assert config.selection == SelectionConfig(n=9, lam="auto")
    assert config.adapter_options("lora")["r"] == 8 and "r" not in config.adapter_options("head")
    assert config.adapter_options("head") == {"lr": 1e-3}
    assert config.training.batch_size == 2 and config.optimizer.name == "sgd"


@pytest.mark.parametrize(
    "line, message",
    [
        ("methods = ['lora']", "'methods' is now called 'adapters'"),
        ("queue = 3", "'queue' is now called 'max_queue_size'"),
        ("keys = 'k'", "'keys' is now called 'api_keys'"),
        ("drain_s = 3", "'drain_s' is now called 'shutdown_timeout_s'"),
        ("n = 3", "'n' is now set as 'n' in the table [selection]"),
        ("rank = 3", "'rank' is now set as 'r' in the table [adapter]"),
        ("[limits]\ndeadline_ms = 3", "'deadline_ms' is now called 'deadline_s'"),
    ],
)
def test_renamed_key_is_an_error_with_its_new_name(tmp_path, line, message):
    file = tmp_path / "whet.toml"
    file.write_text(f'{line}\n[spaces]\ndocs = "d"\n')
    with pytest.raises(ValueError, match=re.escape(message)):
        ServeConfig.read(file)


def test_optimizer_state_never_persists_between_requests(tmp_path):
    training = TrainingConfig(persist_optimizer=True)
    with pytest.raises(ValueError, match="persist_optimizer"):
        ServeConfig(spaces={"docs": tmp_path}, training=training)


def test_docs_list_every_key():
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for field in config_fields(ServeConfig):
        assert f"`{field.name}`" in page or f"`[{field.name}]`" in page, field.name


def test_example_of_deployment_is_valid():
    config = ServeConfig.read(ROOT / "deploy" / "whet.toml")
    assert config.selection.n < config.limits.n
