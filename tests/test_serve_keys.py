"""Keys, limits, configuration and kept adapters, each by itself."""

import datetime
import stat

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support import serving

from whet.adapt.adapters import Adapter
from whet.adapt.config import LoRA
from whet.cli import main
from whet.serve.adapter_cache import Adapters, Kept, adapter_id
from whet.serve.auth import Key, Keys, Limits, new_key
from whet.serve.config import Config, is_loopback
from whet.serve.errors import APIError
from whet.serve.rate_limit import Meter

TODAY = datetime.date(2030, 6, 1)


def test_new_key_opens_and_only_its_hash_is_stored(tmp_path):
    file = tmp_path / "keys.toml"
    token = new_key(file, name='a "quoted" naïve name', roles=("use", "write"), labels=("legal",))
    found = Keys.read(file, Limits()).find(token, TODAY)
    assert found is not None and found.name == 'a "quoted" naïve name'
    assert found.roles == ("use", "write") and found.labels == ("legal",)
    assert token.rpartition("_")[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_of_keys_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(ValueError, match="is not there: make it with `whet key"):
        Keys.read(tmp_path / "keys.toml", Limits())


@given(st.one_of(st.text(), st.from_regex(r"whet_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", fullmatch=True)))
def test_nothing_else_opens(text):
    keys = Keys(list(serving.KEYS))
    right = {serving.token(key.name): key for key in serving.KEYS}
    assert keys.find(text, TODAY) is right.get(text)


def test_wrong_secret_of_a_known_key_does_not_open():
    keys = Keys(list(serving.KEYS))
    assert keys.find(serving.token("legal")[:-1] + "t", TODAY) is None


def test_key_expires_after_its_last_day():
    keys = Keys([serving.key("short", "*", expires=TODAY)])
    token = serving.token("short")
    assert keys.find(token, TODAY) and not keys.find(token, TODAY + datetime.timedelta(days=1))


@pytest.mark.parametrize(
    "line, told",
    [
        ('roles = ["root"]', "has role 'root'"),
        ("labels = 3", "labels is 3: expected a list"),
        ("limits = { m = 1 }", "limits sets 'm'"),
        ("limits = { n = 'x' }", "n is 'x': expected a whole number"),
        ("expires = '2030-01-01'", "expires is '2030-01-01': expected a day"),
        ("hash = 3", "not TOML"),
        ("x = 1", "key sets 'x'"),
        ("[[keys]]", "sets 'keys': expected"),
    ],
)
def test_file_of_keys_that_is_wrong_is_refused(tmp_path, line, told):
    file = tmp_path / "keys.toml"
    file.write_text(f'[[key]]\nid = "aaaaaaaa"\nhash = "00"\n{line}\n')
    with pytest.raises(ValueError, match=told):
        Keys.read(file, Limits())


def test_key_is_added_behind_a_last_line_without_an_end(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text('[[key]]\nid = "aaaaaaaa"\nhash = "00"\nroles = ["use"]')
    token = new_key(file, name="b")
    keys = Keys.read(file, Limits())
    assert len(keys) == 2 and keys.find(token, TODAY)


def test_file_that_a_key_cannot_be_added_to_stays_as_it_is(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text("key = []\n")
    with pytest.raises(ValueError, match="cannot be added"):
        new_key(file, name="b")
    assert file.read_text() == "key = []\n"


def test_key_verb_prints_the_key_once_and_appends(tmp_path):
    file = tmp_path / "keys.toml"
    told = [
        CliRunner().invoke(main, ["key", str(file), name, "--label", "legal", "--days", "3"])
        for name in ("a", "b")
    ]
    keys = Keys.read(file, Limits())
    today = datetime.datetime.now(datetime.UTC).date()
    assert [keys.find(one.stdout.strip(), today).name for one in told] == ["a", "b"]


def test_minute_of_requests_fills_again():
    now = [0.0]
    meter = Meter(Limits(requests_per_minute=2), clock=lambda: now[0])
    key = Key(id="a")

    def ask():
        with meter.admitted(key):
            pass

    ask()
    ask()
    with pytest.raises(APIError) as caught:
        ask()
    assert caught.value.status == 429 and caught.value.retry_after_s == pytest.approx(30)
    now[0] = 30.0
    ask()


def test_tokens_are_paid_afterwards_and_debts_wait():
    now = [0.0]
    meter = Meter(Limits(tokens_per_minute=60), clock=lambda: now[0])
    with meter.admitted(Key(id="a")) as account:
        account.tokens.level -= 100
    with pytest.raises(APIError), meter.admitted(Key(id="a")):
        pass
    with meter.admitted(Key(id="b")):  # another's debt is not theirs
        now[0] = 41.0
    with meter.admitted(Key(id="a")):
        pass


def test_requests_open_at_once_are_bounded():
    meter = Meter(Limits(concurrent=1))
    with meter.admitted(Key(id="a")), pytest.raises(APIError), meter.admitted(Key(id="a")):
        pass
    with meter.admitted(Key(id="a")):
        pass


def test_config_is_read_with_paths_beside_it_and_flags_over_it(tmp_path):
    file = tmp_path / "whet.toml"
    file.write_text(
        'port = 9\nkeys = "k.toml"\nmethods = ["lora", "head"]\n'
        '[spaces]\ndocs = "d.whet"\n[limits]\nn = 3\n'
    )
    config = Config.read(file, port=10, model=None)
    assert config.spaces == {"docs": tmp_path / "d.whet"} and config.keys == tmp_path / "k.toml"
    assert config.port == 10 and config.limits.n == 3 and config.methods == ("lora", "head")


@pytest.mark.parametrize(
    "text", ["ports = 1", 'port = "1"', "port = 70000", "[limits]\nm = 1", "[spaces]\n'a/b' = 'c'",
             "spaces = 3", "slots = 0", "methods = []", 'methods = ["all"]', "=", "cache_mib = -1",
             "name = 'llama@v2'"],
)  # fmt: skip
def test_config_that_is_wrong_is_refused(tmp_path, text):
    file = tmp_path / "whet.toml"
    file.write_text(text + ("" if "spaces" in text else '\n[spaces]\ndocs = "d"\n'))
    with pytest.raises(ValueError):
        Config.read(file)


def test_others_are_let_in_with_keys_alone(tmp_path):
    spaces = {"docs": tmp_path}
    for host in ("0.0.0.0", "::", "example.org", ""):
        with pytest.raises(ValueError, match="keys"):
            Config(spaces=spaces, host=host)
        Config(spaces=spaces, host=host, keys=tmp_path / "keys.toml")
    assert is_loopback("127.0.0.9") and is_loopback("::1") and is_loopback("localhost")


def kept(owner, name, *, size=10, space="docs", rows=(1,), built="one"):
    weights = {"w": torch.zeros(size, dtype=torch.uint8)}
    return Kept(
        id=name, owner=owner, space=space, built=built, version="1", method="lora", rows=rows,
        created=0, adapter=Adapter(LoRA(), weights, "tiny", "", False),
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(1, 60)), max_size=30)
)
def test_adapters_never_exceed_their_bytes_and_the_last_used_stay(puts):
    adapters, order = Adapters(100), {}
    for owner, name, size in puts:
        assert adapters.put(kept(owner, str(name), size=size))
        order.pop((owner, str(name)), None)
        order[owner, str(name)] = size
        while sum(order.values()) > 100:
            order.pop(next(iter(order)))
        assert adapters.bytes == sum(order.values())
        assert all(adapters.get(*place) is not None for place in list(order))
    assert len(adapters) == len(order)


def test_adapter_is_its_owners_alone():
    adapters = Adapters(100)
    adapters.put(kept("a", "ad_1"))
    assert adapters.get("b", "ad_1") is None and adapters.of("b") == []
    assert not adapters.drop("b", "ad_1") and adapters.drop("a", "ad_1")
    assert adapter_id("a", "m", "h", "1", [1]) != adapter_id("b", "m", "h", "1", [1])


def test_adapter_too_large_is_not_kept():
    adapters = Adapters(5)
    assert not adapters.put(kept("a", "ad_1")) and len(adapters) == 0


def test_adapter_goes_with_a_document_that_it_learned_from():
    adapters = Adapters(100)
    adapters.put(kept("a", "ad_1", rows=(1, 2, 1)))
    adapters.put(kept("a", "ad_2", rows=(3,)))
    adapters.put(kept("a", "ad_3", rows=(2,), space="other"))
    adapters.put(kept("a", "ad_4", rows=(3,), built="another"))
    adapters.keep_only("docs", "one", {1, 3})
    assert [one.id for one in adapters.of("a")] == ["ad_3", "ad_2"]
