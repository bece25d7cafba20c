"""A server behind TLS, with a certificate that its own company made."""

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from served_models import OipServer, served

from mixout_export.errors import ServerError
from mixout_export.served import transport
from mixout_export.served.options import ServingOptions
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.verify import verify_checkpoints


def write_certificate(out: Path) -> Path:
    """Write a key and a certificate for 127.0.0.1 that it signs itself, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "models")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    out.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    return out


@pytest.fixture(scope="module")
def graph(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graph") / "onnx"
    return export_onnx(tiny.classifier(), out, verify=False).path


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return write_certificate(tmp_path / "server.pem")


@pytest.fixture
def server(graph: Path, certificate: Path) -> Iterator[OipServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with served(graph / "model.onnx", secured=context) as running:
        yield running


@pytest.fixture(autouse=True)
def _read_certificates_anew() -> Iterator[None]:
    transport._certificates.cache_clear()
    yield
    transport._certificates.cache_clear()


def test_a_certificate_named_in_the_environment_is_trusted(
    graph: Path, server: OipServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    serving = ServingOptions(concurrency=2, requests=2)
    result = verify_checkpoints(graph, server.address, serving=serving)
    assert server.address.startswith("https://")
    assert result.holds, result.reasons()


def test_a_certificate_of_nobody_known_is_refused_at_once(graph: Path, server: OipServer) -> None:
    with pytest.raises(ServerError, match=r"not trusted .self-signed.*SSL_CERT_FILE"):
        verify_checkpoints(graph, server.address)
    assert server.requests == []


def test_a_certificate_of_another_host_is_refused(
    graph: Path, server: OipServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    address = server.address.replace("127.0.0.1", "localhost")
    with pytest.raises(
        ServerError, match=r"not valid for 'localhost'.*host name in the certificate"
    ):
        verify_checkpoints(graph, address)
    assert server.requests == []
