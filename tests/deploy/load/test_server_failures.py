"""Whatever a server does wrong is one clear line, before any load is made."""

import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from polarprune.errors import ConfigError, PolarpruneError, ServerError
from polarprune_deploy.load.load_plan import LoadPlan
from polarprune_deploy.load.server_bench import bench_server
from tests.oip_stub import METADATA, Stub

MakeStub = Callable[..., Stub]
INFER, MODEL = "/v2/models/small/infer", "/v2/models/small"
PLAN = LoadPlan(seconds=0.2)


def framed(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def complaint(url: str, model: str | None = None, token_file: Path | None = None) -> str:
    with pytest.raises(PolarpruneError) as caught:
        bench_server(url, PLAN, model=model, token_file=token_file)
    words = str(caught.value)
    assert "\n" not in words
    assert caught.type in (ServerError, ConfigError)
    return words


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    words = complaint(f"http://127.0.0.1:{port}")
    assert words == (
        f"no answer from http://127.0.0.1:{port}: Connection refused; is the server running?"
    )


def test_a_name_that_is_none() -> None:
    assert complaint("http://no.such.host.invalid:80").startswith("no answer from http://no.such")


@pytest.mark.parametrize(
    ("path", "raw", "words"),
    [
        (MODEL, b"220 mail ready\r\n", "does not answer in HTTP/1.1 (BadStatusLine: "),
        (MODEL, b"", "does not answer in HTTP/1.1 (RemoteDisconnected"),
        (MODEL, framed(b"<html>"), "otherwise than the Open Inference Protocol says: it is not"),
        (MODEL, framed(b'{"name": "small"}'), "says: it has no 'inputs'"),
        (MODEL, framed(b'{"inputs": [], "outputs": 3, "name": "x"}'), "says: it.outputs is of"),
        (MODEL, framed(b'{"inputs": [], "outputs": [], "name": "x"}'), "no inputs or no outputs"),
        (
            MODEL,
            framed(b'{"error": "out of\\n memory"}', b"500 Oh"),
            "answers GET /v2/models/small with status 500: 'out of\\n memory'",
        ),
        (INFER, b"220 mail ready\r\n", "does not answer an inference request: no HTTP: b'220"),
        (INFER, b"", "inference request: the connection was closed before the answer was whole"),
        (INFER, framed(b"half")[:-2], "inference request: the connection was closed before"),
        (INFER, framed(b"{}"), "infer otherwise than the Open Inference Protocol says: JSON witho"),
        (INFER, framed(b"<html>"), "Protocol says: no JSON: b'<html>'"),
        (INFER, framed(b'{"outputs": []}'), "Protocol says: no output 'y'"),
        (INFER, framed(b'{"error": "bad luck"}', b"500 Oh"), "with status 500: 'bad luck'"),
        (INFER, framed(b"Not here", b"400 No"), "infer with status 400: 'Not here'"),
        (INFER, framed(b"", b"503 Full"), "infer with status 503"),
    ],
)
def test_what_it_says_instead_of_an_answer(
    make_stub: MakeStub, path: str, raw: bytes, words: str
) -> None:
    stub = make_stub(raw={path: raw})
    found = complaint(stub.url)
    assert stub.url in found
    assert words in found


def test_a_model_that_is_not_there_and_those_that_are(make_stub: MakeStub) -> None:
    stub = make_stub(index=[{"name": "small"}, {"name": "large", "state": "READY"}])
    assert complaint(stub.url).endswith("serves 2 models; give --model: 'small', 'large'")
    words = complaint(stub.url, "tiny")
    assert words == f"{stub.url} serves no model 'tiny'; it has: 'small', 'large'"
    stub = make_stub(index=[{"name": "small", "state": "UNAVAILABLE"}])
    assert "has no model that is ready; is it still loading?" in complaint(stub.url)
    stub = make_stub(index=None)
    assert "does not say which models it serves; give --model" in complaint(stub.url)


def test_models_are_found_in_the_list_of_kserve(make_stub: MakeStub) -> None:
    stub = make_stub(index=None, raw={"/v2/models": framed(b'{"models": ["small", "b"]}')})
    assert "serves 2 models; give --model: 'small', 'b'" in complaint(stub.url)


def test_texts_and_odd_shapes_are_refused(make_stub: MakeStub) -> None:
    text = {"name": "x", "datatype": "BYTES", "shape": [-1, 3]}
    stub = make_stub(metadata={**METADATA, "inputs": [text]})
    assert "x of small is of datatype BYTES, and load is made of numbers" in complaint(stub.url)
    stub = make_stub(metadata={**METADATA, "inputs": [{**text, "shape": [-2]}]})
    assert "says: 'x' has the shape [-2]" in complaint(stub.url)


def test_a_token_is_asked_for_and_taken(make_stub: MakeStub, tmp_path: Path) -> None:
    stub = make_stub(token="open-sesame")
    assert "give a token that it takes: --token-file FILE" in complaint(stub.url, "small")
    path = tmp_path / "token"
    path.write_text("open-door")
    assert "give a token that it takes" in complaint(stub.url, "small", path)
    path.write_text("open-sesame\n")
    (row,) = bench_server(stub.url, PLAN, token_file=path)["rows"]
    assert row["ok"] == row["n"]


@pytest.mark.parametrize("content", [b"", b"two words", b"a\r\nX-Evil: 1", b"\xff\xfe", None])
def test_what_is_no_token_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    assert complaint("http://127.0.0.1:1", None, path).startswith(f"--token-file {path} ")


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://host:99999",
     "http://host name", "http://h\nost", "http://höst", ""],
)  # fmt: skip
def test_what_is_no_url_is_refused(url: str) -> None:
    assert "a server is http://HOST:PORT or https://HOST:PORT, got " in complaint(url)


@pytest.mark.parametrize("url", ["http://me:secret@host", "http://host?q=1", "http://host/#a"])
def test_a_url_with_more_than_a_path_is_refused_without_repeating_it(url: str) -> None:
    words = complaint(url)
    assert "a server's URL has no user, query or fragment" in words
    assert "secret" not in words


def certificate(folder: Path) -> Path:
    """Of 127.0.0.1, signed by itself, key included."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stub")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "stub.pem"
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


def test_https_is_spoken_with_those_who_are_trusted(
    make_stub: MakeStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certificate(tmp_path)
    stub = make_stub(str(path))
    assert stub.url.startswith("https://")
    words = complaint(stub.url)
    assert re.fullmatch(
        rf"the certificate of {stub.url} is not trusted here \(self.signed certificate.*\); "
        "SSL_CERT_FILE names further authorities",
        words,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    (row,) = bench_server(stub.url, PLAN)["rows"]
    assert row["ok"] == row["n"] > 5


def test_https_with_a_server_that_speaks_plain_http(make_stub: MakeStub) -> None:
    url = make_stub().url.replace("http:", "https:")
    assert "does not speak TLS" in complaint(url)


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("polarprune_deploy.load.endpoint.PATIENCE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "nothing within 0 s; is the server running?" in complaint(f"http://127.0.0.1:{port}")


def test_a_server_that_never_ends_its_answer_is_not_read_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each piece comes in time, the whole does not."""
    monkeypatch.setattr("polarprune_deploy.load.endpoint.LARGEST_DOCUMENT", 10_000)
    with socket.create_server(("127.0.0.1", 0)) as endless:

        def pour() -> None:
            connection, _ = endless.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 20_000)

        thread = threading.Thread(target=pour)
        thread.start()
        port = endless.getsockname()[1]
        words = complaint(f"http://127.0.0.1:{port}", "small")
        thread.join()
    assert "otherwise than the Open Inference Protocol says: it is not an object" in words
