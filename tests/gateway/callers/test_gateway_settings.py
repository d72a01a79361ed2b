"""What the gateway is told: its file, its keys, its command line, and its certificate."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from autoglm_cli import app
from autoglm_gateway.addresses import is_loopback
from autoglm_gateway.settings.error import SettingsError
from autoglm_gateway.settings.file import as_toml, read_settings, settings_of
from autoglm_gateway.settings.keys import Key, read_keys
from autoglm_gateway.settings.model import GatewaySettings
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from tests.support.gateway.gateway_fakes import made_keys
from tests.support.gateway.gateway_server import GatewayThread

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "gateway.md"
DIGEST = "0123456789abcdef" * 4
NO_ENVIRONMENT = {"AUTOGLM_GATEWAY_KEYS": "", "AUTOGLM_GATEWAY_CONFIG": "", "COLUMNS": "200", "TERM": "dumb"}


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={**NO_ENVIRONMENT, **environ})


def written(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    return path


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)


@pytest.mark.slow
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "port": st.integers(0, 65535),
            "servers": st.lists(texts.filter(bool), min_size=1).map(tuple),
            "model": texts,
            "deadline_ms": st.integers(1, 86_400_000),
            "concurrency": st.integers(0, 1_000_000),
            "access_log": texts,
            "log_prompts": st.booleans(),
        },
    ),
    aliases=st.lists(texts),
)
def test_what_is_printed_reads_back_to_the_same_settings(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], aliases: list[str]
) -> None:
    settings = settings_of({**values, "aliases": aliases}, {})
    path = written(tmp_path_factory.getbasetemp(), as_toml(settings))
    assert settings_of(read_settings(path), {}) == settings


def test_every_setting_but_the_keys_is_printed() -> None:
    printed = re.findall(
        r"^(\w+) = ", as_toml(GatewaySettings(deadline_ms=5, otlp="http://127.0.0.1:4318")), flags=re.MULTILINE
    )
    known = {field.name for field in dataclasses.fields(GatewaySettings)}
    assert set(printed) == known - {"keys"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 8080", "there is no setting 'prot'; did you mean port?"),
        ("colour = 1", "there is no setting 'colour'; known are host, port,"),
        ("keys = []", "there is no setting 'keys'"),
        ("port = 70000", "port is 70000; it must be between 0 and 65535"),
        ("port = true", "port is True; it must be a whole number"),
        ("port = 80.5", "port is 80.5; it must be a whole number"),
        ("open = 1", "open is 1; it must be true or false"),
        ("servers = 'a:1'", "servers is 'a:1'; it must be a list of strings"),
        ("servers = ['']", "servers has ''; it must be host:port"),
        ("servers = ['http://a:1']", "servers has 'http://a:1'; it must be host:port"),
        ("aliases = {a = 1}", "aliases is {'a': 1}; it must be a table of strings"),
        ("aliases = {a = 'b'}", "the alias 'a' means 'b'; it must mean the model, 'autoglm'"),
        ("deadline_ms = 0", "deadline_ms is 0; it must be between 1 and"),
        ("priority = 5", "priority is 5; it must be between -4 and 4"),
        ("requests_per_minute = -1", "requests_per_minute is -1; it must be between 0 and"),
        ("tls_cert = 'a.pem'", "tls_cert and tls_key belong together"),
        ("trusted_proxies = ['proxy']", "trusted_proxies has 'proxy'; it must be like 10.0.0.7 or"),
        ("trusted_proxies = ['10.0.0.1/8']", "it must be like 10.0.0.7 or 10.0.0.0/24"),
        ("allow_origins = ['example.org']", "allow_origins has 'example.org'"),
        ("allow_origins = ['https://example.org/']", "allow_origins has 'https://example.org/'"),
        ("host = '0.0.0.0'", "the host '0.0.0.0' can be reached from elsewhere and there are no keys"),
        ("keys_file = 'missing.toml'", "missing.toml: No such file"),
        ("port = ", "is no TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    result = run("gateway", "--config", str(written(tmp_path, text)), "--print-config")
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert words in result.stderr


def test_an_option_goes_before_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "port = 9000\nmodel = 'm'\nconcurrency = 3\n")
    shown = run("gateway", "--config", str(path), "--concurrency", "5", "--alias", "x", "--print-config").output
    assert "port = 9000\n" in shown and "concurrency = 5\n" in shown and 'aliases = {"x" = "m"}' in shown


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_elsewhere_needs_keys_or_the_word_open(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    keys, _ = made_keys("alice")
    GatewaySettings(host=host, keys=keys)
    GatewaySettings(host=host, open=True)
    if loopback:
        GatewaySettings(host=host)
    else:
        with pytest.raises(SettingsError, match="say --open"):
            GatewaySettings(host=host)


@pytest.mark.slow
def test_a_made_key_is_shown_once_and_its_line_admits_it(tmp_path: Path) -> None:
    results = [run("gateway-key", name) for name in ("alice", "bob")]
    keys = [re.findall(r"ak-[A-Za-z0-9_-]{43}", result.stderr) for result in results]
    assert [len(found) for found in keys] == [1, 1] and keys[0] != keys[1]
    text = "".join(result.stdout for result in results)
    assert "ak-" not in text
    read = read_keys(text, "the test")
    assert [(key.tenant, key.digests) for key in read] == [
        (name, (hashlib.sha256(found[0].encode()).digest(),))
        for name, found in zip(("alice", "bob"), keys, strict=True)
    ]
    file = tmp_path / "keys.toml"
    file.write_text(text)
    assert run("gateway", "--keys", str(file), "--host", "0.0.0.0", "--print-config").exit_code == 0
    assert run("gateway", "--host", "0.0.0.0", "--print-config", AUTOGLM_GATEWAY_KEYS=text).exit_code == 0
    both = run("gateway", "--keys", str(file), "--print-config", AUTOGLM_GATEWAY_KEYS=text)
    assert both.exit_code == 1 and "not from both" in both.stderr
    assert run("gateway-key", "two words").exit_code == 1


def test_a_line_may_have_two_keys_and_limits_of_its_own() -> None:
    text = (
        f'alice = {{sha256 = ["{DIGEST}", "{DIGEST[::-1]}"], requests_per_minute = 0, concurrency = 3, metrics = '
        f"true, priority = -4}}"
    )
    assert read_keys(text, "the test") == (
        Key("alice", (bytes.fromhex(DIGEST), bytes.fromhex(DIGEST[::-1])), 0, 3, metrics=True, priority=-4),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ('alice = "ak-secret"', "alice must be a table"),
        ('alice = {sha256 = "ak-secret"}', "sha256 must be 64 digits"),
        ('alice = {sha256 = ["ak-secret"]}', "sha256 must be 64 digits"),
        ("alice = {sha256 = []}", "sha256 must be 64 digits"),
        ("alice = {}", "sha256 must be 64 digits"),
        (f'alice = {{sha256 = "{DIGEST.upper()}"}}', "sha256 must be 64 digits"),
        (f'"a b" = {{sha256 = "{DIGEST}"}}', "the tenant 'a b' must be named by"),
        (f'alice = {{sha256 = "{DIGEST}", colour = 1}}', "unknown field 'colour'"),
        (f'alice = {{sha256 = "{DIGEST}", concurrency = -1}}', "concurrency is -1; it must be a whole number, 0"),
        (f'alice = {{sha256 = "{DIGEST}", concurrency = true}}', "concurrency is True"),
        (f'alice = {{sha256 = "{DIGEST}", priority = -5}}', "priority is -5; it must be a whole number, -4 ... 4"),
        (f'alice = {{sha256 = "{DIGEST}", metrics = 1}}', "metrics is 1; it must be true or false"),
        (f'a = {{sha256 = "{DIGEST}"}}\nb = {{sha256 = "{DIGEST}"}}', "a and b have the same key"),
        ("ak-secret", "is no TOML: wrong at"),
        ("alice = ak-secret", "is no TOML: wrong at line 1"),
    ],
)
def test_what_is_wrong_with_keys_is_named_without_showing_what_may_be_one(text: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_keys(text, "keys.toml")
    assert words in str(caught.value) and "secret" not in str(caught.value)


def test_keys_are_in_no_printout() -> None:
    keys, (key,) = made_keys("alice")
    settings = GatewaySettings(keys=keys)
    shown = repr(settings) + as_toml(settings)
    assert key not in shown and keys[0].digests[0].hex() not in shown and "alice" not in shown


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    yield cert, key


def test_with_a_certificate_it_speaks_tls_and_nothing_else(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    settings = GatewaySettings(tls_cert=cert, tls_key=key)
    trusting = ssl.create_default_context(cafile=cert)
    with GatewayThread(settings) as gateway:
        url = f"https://127.0.0.1:{gateway.port}/health/live"
        answer = httpx.get(url, verify=trusting, timeout=60)
        assert answer.json() == {"live": True} and answer.headers["x-request-id"]
        with pytest.raises(httpx.ConnectError, match="self-signed certificate"):
            httpx.get(url, timeout=60)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{gateway.port}/health/live", timeout=60)
        old = ssl.create_default_context(cafile=cert)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        assert httpx.get(url, verify=old, timeout=60).status_code == 200


def test_a_certificate_that_cannot_be_used_is_one_sentence(certificate: tuple[str, str], tmp_path: Path) -> None:
    cert, key = certificate
    for wrong in ((key, cert), (cert, str(tmp_path / "missing.pem"))):
        result = run("gateway", "--port", "0", "--tls-cert", wrong[0], "--tls-key", wrong[1])
        assert result.exit_code == 1 and "cannot be used" in result.stderr and result.stderr.count("\n") == 1


def test_an_access_log_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    result = run("gateway", "--port", "0", "--access-log", str(tmp_path / "missing" / "log"))
    assert result.exit_code == 1 and result.stderr.endswith("log: No such file or directory\n")


def test_every_setting_has_a_row_in_the_documentation() -> None:
    rows = re.findall(r"^\| ([a-z_, ]+) \|", DOCUMENTATION.read_text(encoding="utf-8"), flags=re.MULTILINE)
    documented = {name for row in rows for name in row.split(", ")}
    assert {field.name for field in dataclasses.fields(GatewaySettings)} - {"keys"} <= documented
