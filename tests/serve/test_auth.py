"""API keys: tokens, the key file, and the command that makes keys."""

import datetime
import stat

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support import serving

from whet.cli import main
from whet.serve.access.auth import APIKeyStore, create_key
from whet.serve.config import Limits

TODAY = datetime.date(2030, 6, 1)


def test_new_key_is_valid_and_only_its_hash_is_stored(tmp_path):
    file = tmp_path / "keys.toml"
    token = create_key(
        file, name='a "quoted" naïve name', roles=("read", "write"), labels=("legal",)
    )
    found = APIKeyStore.read(file, Limits()).authenticate(token, TODAY)
    assert found is not None and found.name == 'a "quoted" naïve name'
    assert found.roles == ("read", "write") and found.labels == ("legal",)
    assert token[-43:] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_missing_key_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="does not exist: make it with `whet keys create"):
        APIKeyStore.read(tmp_path / "keys.toml", Limits())


@given(st.one_of(st.text(), st.from_regex(r"whet_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", fullmatch=True)))
def test_no_other_token_is_valid(text):
    keys = APIKeyStore(list(serving.KEYS))
    right = {serving.token(key.name): key for key in serving.KEYS}
    assert keys.authenticate(text, TODAY) is right.get(text)


def test_wrong_secret_is_invalid():
    keys = APIKeyStore(list(serving.KEYS))
    assert keys.authenticate(serving.token("legal")[:-1] + "t", TODAY) is None


def test_key_expires_after_its_last_day():
    keys = APIKeyStore([serving.key("short", "*", expires=TODAY)])
    token = serving.token("short")
    assert keys.authenticate(token, TODAY) and not keys.authenticate(
        token, TODAY + datetime.timedelta(days=1)
    )


@pytest.mark.parametrize(
    "line, response",
    [
        ('roles = ["root"]', "has role 'root'"),
        ("labels = 3", "labels is 3: expected a list"),
        ("limits = { m = 1 }", "limits: unknown name 'm'"),
        ("limits = { n = 'x' }", "n is 'x': expected an integer"),
        ("expires = '2030-01-01'", "expires is '2030-01-01': expected a date"),
        ("weight = 0", "weight of key aaaaaaaa is 0: expected a whole number"),
        ("hash = 3", "not valid TOML"),
        ("x = 1", "key: unknown name 'x'"),
        ("[[keys]]", "unknown table 'keys'"),
    ],
)
def test_invalid_key_file_is_an_error(tmp_path, line, response):
    file = tmp_path / "keys.toml"
    file.write_text(f'[[key]]\nid = "aaaaaaaa"\nhash = "00"\n{line}\n')
    with pytest.raises(ValueError, match=response):
        APIKeyStore.read(file, Limits())


def test_key_is_appended_after_a_line_without_newline(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text('[[key]]\nid = "aaaaaaaa"\nhash = "00"\nroles = ["use"]')
    token = create_key(file, name="b")
    keys = APIKeyStore.read(file, Limits())
    assert len(keys) == 2 and keys.authenticate(token, TODAY)


def test_key_file_is_unchanged_if_adding_fails(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text("key = []\n")
    with pytest.raises(ValueError, match="cannot be added"):
        create_key(file, name="b")
    assert file.read_text() == "key = []\n"


def test_command_prints_the_key_and_appends_its_hash(tmp_path):
    file = tmp_path / "keys.toml"
    response = [
        CliRunner().invoke(
            main, ["keys", "create", str(file), name, "--label", "legal", "--days", "3"]
        )
        for name in ("a", "b")
    ]
    keys = APIKeyStore.read(file, Limits())
    today = datetime.datetime.now(datetime.UTC).date()
    assert [keys.authenticate(item.stdout.strip(), today).name for item in response] == ["a", "b"]


def test_key_files_of_earlier_versions_are_valid(tmp_path):
    file = tmp_path / "keys.toml"
    token = create_key(file, name="a", roles=("read", "metrics"))
    text = file.read_text().replace('"read"', '"use"').replace('"metrics"', '"operate"')
    file.write_text(text.rstrip() + "\nlimits = { n = 3, deadline_ms = 1500 }\n")
    key = APIKeyStore.read(file, Limits()).authenticate(token, TODAY)
    assert key.roles == ("read", "metrics")
    assert key.limits == Limits(n=3, deadline_s=1.5)
