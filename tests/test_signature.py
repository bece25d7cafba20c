"""A bundle is signed with a private key and holds for the public one, and for no other."""

import builtins
from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import verifying

from mixout_export.bundling.plan import BundleOptions
from mixout_export.errors import ArgumentError, MixoutError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.output import LOCK
from mixout_export.provenance.manifest import check_manifest
from mixout_export.provenance.signature import check_signature, sign_folder
from mixout_export.stages.bundle import bundle_onnx
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.verify import verify_checkpoints


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a private and a public key on the curve P-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture(scope="module")
def graph(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graph") / "graph"
    return export_onnx(tiny.classifier("bert"), out, verify=False).path


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path, "mine")


@pytest.fixture
def signed(graph: Path, keys: tuple[Path, Path], tmp_path: Path) -> Path:
    options = BundleOptions("triton", "tiny")
    return bundle_onnx(graph, tmp_path / "signed", options, sign=keys[0]).out


def test_a_signed_bundle_holds_for_its_key(
    signed: Path, graph: Path, keys: tuple[Path, Path]
) -> None:
    assert check_signature(signed, keys[1]) == ""
    assert not check_manifest(InputFiles(signed)).problems
    assert verify_checkpoints(graph, signed, signature=keys[1]).passed
    signed.rename(signed.with_name("elsewhere"))
    assert check_signature(signed.with_name("elsewhere"), keys[1]) == ""


def test_another_key_a_changed_file_and_an_added_one(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    _, other = make_keys(tmp_path, "other")
    assert "is not valid for the key other.pub.pem" in check_signature(signed, other)
    labels = signed / "tiny" / "labels.txt"
    whole = labels.read_bytes()
    labels.write_bytes(whole + b"x")
    assert "(changed: tiny/labels.txt)" in check_signature(signed, keys[1])
    labels.write_bytes(whole)
    (signed / ".gitignore").touch()
    assert "added: .gitignore" in check_signature(signed, keys[1])
    (signed / ".gitignore").unlink()
    (signed / "elsewhere").symlink_to(tmp_path)
    assert "added: the link elsewhere" in check_signature(signed, keys[1])
    (signed / "elsewhere").unlink()
    (signed / LOCK).write_text("not empty")  # only while a folder is written it is no part of it
    assert f"added: {LOCK}" in check_signature(signed, keys[1])


def test_a_manifest_that_somebody_made_anew_is_signed_too(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    manifest = signed / "manifest.json"
    manifest.write_text(manifest.read_text().replace("triton", "tritoN"))
    assert "(changed: manifest.json)" in check_signature(signed, keys[1])


@pytest.mark.parametrize("digest", [b"a", b"'", b'"', b"'\""])
def test_a_changed_file_is_named_whatever_its_digest(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, digest: bytes
) -> None:
    text = f"Hash mismatch for 'manifest.json': Expected '{digest!r}', Actual '{digest!r}'"

    def verify(*_: object) -> None:
        raise ValueError(f"Signature mismatch: {[text]}")

    monkeypatch.setattr(verifying.Config, "verify", verify)
    assert "(changed: manifest.json)" in check_signature(signed, keys[1])


def test_the_private_key_is_nowhere_in_the_bundle(signed: Path, keys: tuple[Path, Path]) -> None:
    secret = keys[0].read_bytes().splitlines()[1]
    for path in signed.rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes()


def test_the_command_says_what_is_wrong_and_exits_with_3(
    signed: Path,
    graph: Path,
    keys: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    program = Program(capfd)
    assert program("verify", graph, signed, "--signature", keys[1]).done().out
    _, other = make_keys(tmp_path, "other")
    run = program("verify", graph, signed, "--signature", other)
    assert run.code == 3
    assert "parity holds" in run.out
    assert "is not valid for the key other.pub.pem" in run.out
    run = program("verify", graph, graph, "--signature", keys[1])
    assert run.code == 3
    assert "is missing; sign the folder with bundle --sign" in run.out
    run = program("verify", graph, "http://127.0.0.1:1/v2/models/x", "--signature", keys[1])
    assert run.code == 2
    assert "--signature: http://127.0.0.1:1/v2/models/x is a server" in run.err


def test_what_is_no_key_is_refused(
    graph: Path, signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.pem").write_text("no key")
    with pytest.raises(ArgumentError, match=r"bad\.pem: is not a usable private key"):
        sign_folder(signed, tmp_path / "bad.pem")
    with pytest.raises(ArgumentError, match=r"bad\.pem: is not a usable public key"):
        check_signature(signed, tmp_path / "bad.pem")
    with pytest.raises(ArgumentError, match="no such file"):
        check_signature(signed, tmp_path / "none.pem")
    options = BundleOptions("triton", "tiny")
    with pytest.raises(ArgumentError, match="is not a usable private key"):
        bundle_onnx(graph, tmp_path / "out", options, sign=keys[1])
    assert not (tmp_path / "out").exists()


def test_without_the_library_the_extra_is_named(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("model_signing"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MixoutError, match=r"pip install 'mixout-export\[sign\]'"):
        sign_folder(signed, keys[0])
    with pytest.raises(MixoutError, match=r"pip install 'mixout-export\[sign\]'"):
        check_signature(signed, keys[1])
