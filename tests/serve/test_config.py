"""The configuration of the server."""

import pytest

from whet.serve.config import ServeConfig, is_loopback


def test_config_is_read_with_paths_beside_it_and_flags_over_it(tmp_path):
    file = tmp_path / "whet.toml"
    file.write_text(
        'port = 9\napi_keys = "k.toml"\nadapters = ["lora", "head"]\n'
        '[spaces]\ndocs = "d.whet"\n[limits]\nn = 3\n'
    )
    config = ServeConfig.read(file, port=10, model=None)
    assert config.spaces == {"docs": tmp_path / "d.whet"} and config.api_keys == tmp_path / "k.toml"
    assert config.port == 10 and config.limits.n == 3 and config.adapters == ("lora", "head")


@pytest.mark.parametrize(
    "text", ["ports = 1", 'port = "1"', "port = 70000", "[limits]\nm = 1", "[spaces]\n'a/b' = 'c'",
             "spaces = 3", "slots = 0", "adapters = []", 'adapters = ["all"]', "=", "cache_mib = -1",
             "name = 'llama@v2'"],
)  # fmt: skip
def test_config_that_is_wrong_is_refused(tmp_path, text):
    file = tmp_path / "whet.toml"
    file.write_text(text + ("" if "spaces" in text else '\n[spaces]\ndocs = "d"\n'))
    with pytest.raises(ValueError):
        ServeConfig.read(file)


def test_others_are_let_in_with_keys_alone(tmp_path):
    spaces = {"docs": tmp_path}
    for host in ("0.0.0.0", "::", "example.org", ""):
        with pytest.raises(ValueError, match="api_keys"):
            ServeConfig(spaces=spaces, host=host)
        ServeConfig(spaces=spaces, host=host, api_keys=tmp_path / "keys.toml")
    assert is_loopback("127.0.0.9") and is_loopback("::1") and is_loopback("localhost")
