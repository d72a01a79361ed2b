"""TLS, mutual TLS and headers, against the real tritonserver with certificates made here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from autoglm_cli.app import app
from autoglm_cli.options.connection import headers_of, tls_of
from autoglm_cli.server import gateway_process
from autoglm_cli.server.ports import is_listening
from autoglm_cli.server.server_tls import ServerTLS
from autoglm_client import (
    NO_RETRIES,
    TLS,
    AsyncClient,
    AutoGLMError,
    CannotConnectError,
    Client,
    CredentialsError,
    InvalidRequestError,
    LocalServer,
    LocalServerError,
)
from autoglm_client.transport.certificate_dates import not_after
from autoglm_client.transport.headers import read_headers, source_of
from autoglm_gateway.servers import headers_to_servers, tls_to_servers
from autoglm_gateway.settings.error import SettingsError
from autoglm_gateway.settings.file import as_toml
from autoglm_gateway.settings.model import GatewaySettings
from typer.testing import CliRunner

from tests.support.engine.small_service import until
from tests.support.gateway.gateway_server import GatewayThread
from tests.support.server.certificates import Authority, Signed
from tests.support.server.silent_model import write_silent_repository

TOKEN_HEADER = "triton-grpc-protocol-token"
RESTRICTED = ("--grpc-restricted-protocol=inference,metadata,statistics:token=s3cret",)


@dataclass(frozen=True, slots=True)
class Certificates:
    authority: Authority
    server: Signed
    client: Signed
    stranger: Signed  # of another authority
    other: Authority
    expired: Signed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = Authority(folder, "ours"), Authority(folder, "theirs")
    return Certificates(
        authority,
        authority.sign("server", "127.0.0.1", "triton.example"),
        authority.sign("client"),
        other.sign("stranger"),
        other,
        authority.sign("expired", "127.0.0.1", has_expired=True),
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_silent_repository(tmp_path_factory.mktemp("silent"))


@pytest.fixture(scope="module")
def secure(made: Certificates, repository: Path) -> Iterator[LocalServer]:
    """With TLS, and a token for all but health."""
    tls = ServerTLS(cert=made.server.cert, key=made.server.key)
    with LocalServer(repository, tls=tls, arguments=RESTRICTED) as running:
        yield running


@pytest.fixture(scope="module")
def mutual(made: Certificates, repository: Path) -> Iterator[LocalServer]:
    tls = ServerTLS(cert=made.server.cert, key=made.server.key, client_ca=made.authority.cert)
    with LocalServer(repository, tls=tls, client_tls=TLS(cert=made.client.cert, key=made.client.key)) as running:
        yield running


def ask(url: str, tls: TLS | bool | None, **more: Any) -> str:
    with Client(url, tls=tls, retries=NO_RETRIES, **more) as client:
        return client.generate("0").text


# ---- what needs no server


def test_a_certificates_end_is_read(made: Certificates) -> None:
    end = not_after(made.server.cert.read_text())
    assert timedelta(days=1) < end - datetime.now(UTC) < timedelta(days=3)
    assert not_after(made.expired.cert.read_text()) < datetime.now(UTC)


def test_what_is_no_certificate_is_refused(made: Certificates) -> None:
    lines = made.server.cert.read_text().splitlines()
    for text in ("", "\n".join(lines[:-1]), "\n".join((*lines[:2], lines[-1]))):
        with pytest.raises(ValueError, match=r"no certificate|ends early|padding"):
            not_after(text)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"ca": "missing.pem"}, "missing.pem cannot be used: No such file"),
        ({"cert": "client"}, "the key is missing"),
        ({"key": "client"}, "the certificate is missing"),
        ({"cert": "client", "key": "server"}, "cannot be used: .*mismatch"),
        ({"cert": "expired", "key": "expired"}, r"expired on \d{4}-\d\d-\d\d"),
    ],
)
def test_files_that_cannot_be_used_are_named(made: Certificates, names: dict[str, str], sentence: str) -> None:
    chosen = {kind: name if kind == "ca" else getattr(getattr(made, name), kind) for kind, name in names.items()}
    with pytest.raises(CredentialsError, match=sentence):
        TLS(**chosen).credentials()


def test_the_servers_files_are_looked_at_before_it_starts(made: Certificates, repository: Path) -> None:
    with pytest.raises(LocalServerError, match=r"cannot be used: .*mismatch"):
        ServerTLS(cert=made.server.cert, key=made.client.key).arguments()
    tls = ServerTLS(cert=made.server.cert, key=made.server.key, client_ca=made.authority.cert)
    with pytest.raises(LocalServerError, match="give --tls-cert and --tls-key"):
        LocalServer(repository, tls=tls)


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"a b": "x"}, "the header name 'a b'"),
        ({"grpc-timeout": "x"}, "neither grpc-"),
        ({"x-bin": "x"}, "nor -bin"),
        ({"authorization": "Bearer s3crét"}, "the value of the header 'authorization'"),
    ],
)
def test_headers_that_grpc_would_not_send_are_refused_without_their_value(
    headers: dict[str, str], sentence: str
) -> None:
    with pytest.raises(InvalidRequestError, match=sentence) as caught:
        source_of(headers)
    assert "s3cr" not in str(caught.value)
    with pytest.raises(InvalidRequestError, match=sentence):
        source_of(lambda: headers)()


def test_headers_of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("Authorization: Bearer a:b\n\nX-Team: blue\n")
    found = headers_of([f"@{file}", "x-team: red"], {"AUTOGLM_HEADERS": "x-from: here"})
    assert found == {"authorization": "Bearer a:b", "x-team": "red", "x-from": "here"}
    with pytest.raises(InvalidRequestError, match="line 2 of here is no header"):
        read_headers("a: b\nsecret", "here")


def test_nothing_that_asks_for_tls_is_no_tls() -> None:
    assert tls_of(False, None, None, None, None) is None
    assert tls_of(False, None, None, None, "name") == TLS(server_name="name")


def test_the_gateway_beside_a_server_is_told_how_to_reach_it(
    made: Certificates, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerTLS(cert=made.server.cert, key=made.server.key, client_ca=made.authority.cert)
    own = TLS(cert=made.client.cert, key=made.client.key)
    asked = gateway_process._tls_arguments(LocalServer(repository, tls=server, client_tls=own).client_tls)
    files = (("ca", made.server.cert), ("cert", made.client.cert), ("key", made.client.key))
    assert asked == ["--server-tls", *(word for name, path in files for word in (f"--server-tls-{name}", str(path)))]
    monkeypatch.setenv("AUTOGLM_TLS_CA", "elsewhere.pem")
    assert gateway_process._tls_arguments(LocalServer(repository).client_tls) == []
    assert "AUTOGLM_TLS_CA" not in gateway_process._environment(), "a server without TLS is reached without"


def test_secrets_of_the_gateways_are_not_printed(tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text("authorization: Bearer s3cret\n")
    settings = GatewaySettings(server_headers_file=str(headers))
    given = headers_to_servers(settings, lambda: {"traceparent": "00-1-1-01"})
    assert given is not None and given() == {"authorization": "Bearer s3cret", "traceparent": "00-1-1-01"}
    assert "s3cret" not in repr(settings) + as_toml(settings)
    for text, sentence in (("s3cret", "line 1"), ("a b: s3cret", "'a b'")):
        headers.write_text(text)
        with pytest.raises(SettingsError, match=sentence) as caught:
            headers_to_servers(settings)
        assert "s3cret" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"TLS to the servers: .*none.pem"):
        tls_to_servers(GatewaySettings(server_tls_ca="none.pem"))
    with pytest.raises(SettingsError, match="belong together"):
        GatewaySettings(server_tls_cert="cert.pem")


# ---- the real server


@pytest.mark.server
def test_one_who_trusts_and_is_let_in_is_answered(secure: LocalServer, made: Certificates) -> None:
    tls, headers = TLS(ca=made.authority.cert), {TOKEN_HEADER: "s3cret"}
    with Client(secure.grpc_url, tls=tls, headers=headers) as client:
        assert client.generate("0").text == "so it was"
        assert client.stream("0").read_all().text == "so it was"
        assert [model.name for model in client.models()] == ["autoglm", "engine"], "unary calls take the same headers"
    assert ask(secure.grpc_url, TLS(ca=made.server.cert), headers=headers) == "so it was", "the certificate itself"
    named = TLS(ca=made.authority.cert, server_name="triton.example")
    assert ask(secure.grpc_url, named, headers=headers) == "so it was"


@pytest.mark.server
async def test_headers_may_be_made_for_each_request(secure: LocalServer, made: Certificates) -> None:
    calls = []

    def headers() -> dict[str, str]:
        calls.append(1)
        return {TOKEN_HEADER: "s3cret", "traceparent": "00-1-1-01"}

    async with AsyncClient(secure.grpc_url, tls=TLS(ca=made.authority.cert), headers=headers) as client:
        await client.generate("0")
        await client.models()
    assert len(calls) >= 2


@pytest.mark.server
@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (lambda made: TLS(ca=made.other.cert), CredentialsError, "signed by none of the trusted authorities"),
        (lambda made: True, CredentialsError, "signed by none of the trusted authorities"),
        (lambda made: TLS(ca=made.authority.cert, server_name="x.example"), CredentialsError, "for another name"),
        (lambda made: None, CannotConnectError, "closed the connection; it may ask for TLS"),
        (lambda made: TLS(ca=made.authority.cert), CredentialsError, f"refuses this client: .*{TOKEN_HEADER}"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    secure: LocalServer, made: Certificates, make: Any, kind: type[AutoGLMError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence) as caught:
        ask(secure.grpc_url, make(made))
    assert "\n" not in str(caught.value)


@pytest.mark.server
def test_a_server_with_an_expired_certificate_is_not_asked(made: Certificates, repository: Path) -> None:
    server = LocalServer(repository, tls=ServerTLS(cert=made.expired.cert, key=made.expired.key))
    server.start()
    try:
        until(lambda: is_listening((server.host, server.grpc_port)))
        assert not server.is_ready()
        with pytest.raises(CredentialsError, match="the server's certificate has expired"):
            ask(server.grpc_url, TLS(ca=made.authority.cert))
    finally:
        server.stop()


@pytest.mark.server
def test_mutual_tls(mutual: LocalServer, made: Certificates) -> None:
    assert mutual.is_healthy(), "who started the server looks at it as a client"
    ca = made.authority.cert
    assert ask(mutual.grpc_url, TLS(ca=ca, cert=made.client.cert, key=made.client.key)) == "so it was"
    with pytest.raises(CannotConnectError, match="at the TLS handshake; it may ask for a client certificate"):
        ask(mutual.grpc_url, TLS(ca=ca))
    with pytest.raises(CannotConnectError, match=r"it may not trust the client certificate .*theirs-stranger.pem"):
        ask(mutual.grpc_url, TLS(ca=ca, cert=made.stranger.cert, key=made.stranger.key))


@pytest.mark.server
def test_tls_to_a_server_without_it(made: Certificates, repository: Path) -> None:
    with LocalServer(repository) as plain, pytest.raises(CredentialsError, match="the server speaks no TLS"):
        ask(plain.grpc_url, TLS(ca=made.authority.cert))


@pytest.mark.server
def test_the_commands_take_all_of_it_from_the_environment(
    mutual: LocalServer, made: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"CA": made.authority.cert, "CERT": made.client.cert, "KEY": made.client.key}
    for name, path in files.items():
        monkeypatch.setenv(f"AUTOGLM_TLS_{name}", str(path))
    asked = CliRunner().invoke(app, ["generate", "0", "--raw", "--url", mutual.grpc_url])
    assert (asked.exit_code, asked.stdout) == (0, "so it was\n"), asked.stderr
    asked = CliRunner().invoke(
        app, ["generate", "0", "--raw", "--url", mutual.grpc_url, "--tls-ca", str(made.other.cert)]
    )
    assert (asked.exit_code, asked.stderr.count("\n")) == (1, 1)
    assert "signed by none of the trusted authorities" in asked.stderr


@pytest.mark.server
def test_a_header_on_the_command_line_shows_to_nobody(secure: LocalServer, made: Certificates) -> None:
    header = f"{TOKEN_HEADER}: s3cret"
    options = ["--url", secure.grpc_url, "--tls-ca", str(made.authority.cert), "--header", header]
    command = [sys.executable, "-m", "autoglm_cli", "generate", "--raw", *options]
    with subprocess.Popen([*command, "3600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        shown = Path(f"/proc/{asking.pid}/cmdline")
        try:
            until(lambda: b"token: ******" in shown.read_bytes() or asking.poll() is not None)
            assert asking.poll() is None and b"s3cret" not in shown.read_bytes()
        finally:
            asking.kill()
    done = subprocess.run([*command, "0"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("so it was\n", "")


@pytest.mark.server
def test_the_gateway_reaches_its_servers_so(
    secure: LocalServer, mutual: LocalServer, made: Certificates, tmp_path: Path
) -> None:
    headers = tmp_path / "headers"
    headers.write_text(f"{TOKEN_HEADER}: s3cret\n")
    tls = {"server_tls_ca": str(made.authority.cert)}
    own = {"server_tls_cert": str(made.client.cert), "server_tls_key": str(made.client.key)}
    body = {"model": "autoglm", "prompt": "0", "max_tokens": 1}
    for settings in (
        GatewaySettings(servers=(secure.grpc_url,), server_headers_file=str(headers), **tls),
        GatewaySettings(servers=(mutual.grpc_url,), **tls, **own),
    ):
        with GatewayThread(settings) as gateway:
            answer = httpx.post(f"http://127.0.0.1:{gateway.port}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == "so it was", answer.text
