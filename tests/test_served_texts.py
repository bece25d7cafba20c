import pytest

from mixout_export.printable import one_line
from mixout_export.served.texts import parse_uint


def test_texts_of_a_server_fit_into_a_sentence() -> None:
    assert one_line("two\nlines\t here") == "two lines here"
    assert one_line("\x1b[31mred\x1b[0m \u202eevil") == "⟨U+001B⟩[31mred⟨U+001B⟩[0m ⟨U+202E⟩evil"
    assert len(one_line("x" * 10_000)) == 301
    assert one_line({"a": 1}) == "{'a': 1}"


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("42", 42), ("", None), ("-1", None), ("²", None), ("1.0", None), ("9" * 99, None)],
)
def test_a_number_is_of_few_plain_digits(text: str, number: int | None) -> None:
    assert parse_uint(text) == number
