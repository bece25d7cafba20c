import pytest

from mixout_export.errors import ArgumentError
from mixout_export.served.address import is_address, parse_address


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("http://a:8000/v2/models/bert", ("http", "a:8000", "", "bert", None)),
        ("https://a/v2/models/bert/", ("https", "a", "", "bert", None)),
        ("grpc://[::1]:8001/v2/models/b/versions/3", ("grpc", "[::1]:8001", "", "b", "3")),
        ("http://a/team/x/v2/models/b%20c", ("http", "a", "/team/x", "b c", None)),
        ("http://a/v2/models/v2/versions/v2", ("http", "a", "", "v2", "v2")),
    ],
)
def test_an_address_is_read_and_written(text: str, parts: tuple[str | None, ...]) -> None:
    address = parse_address(text)
    found = (address.scheme, address.host, address.prefix, address.model, address.version)
    assert found == parts
    assert str(address) == text.rstrip("/")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("ftp://a/v2/models/b", "'ftp', expected one of http, https, grpc"),
        ("http:///v2/models/b", "has no host"),
        ("http://a:x/v2/models/b", "is not a valid address"),
        ("http://a:99999/v2/models/b", "is not a valid address"),
        ("http://a/v1/models/b", "expected http://a/v2/models/NAME"),
        ("http://a/v2/models/b/infer", "expected http://a/v2/models/NAME"),
        ("http://a/v2/models/b?x=1", "expected http://a/v2/models/NAME"),
        ("http://a", "expected http://a/v2/models/NAME"),
    ],
)
def test_what_is_no_address_of_a_model_is_refused(text: str, part: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        parse_address(text)
    assert part in str(raised.value)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ArgumentError, match="credentials are never sent") as raised:
        parse_address("http://me:secret@a/v2/models/b")
    assert "secret" not in str(raised.value)


def test_paths_are_no_addresses() -> None:
    assert not is_address("out/model.onnx")
    assert not is_address("http:/a")
    assert is_address("http://a")
