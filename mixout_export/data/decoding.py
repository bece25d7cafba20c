"""Decode the bytes of a text file: UTF-8, or UTF-16 and UTF-32 with a byte order mark."""

import codecs
import re
from pathlib import Path

from mixout_export.errors import DataError

#: Byte order mark → codec. That of UTF-32 begins with that of UTF-16, so it comes first.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

#: Encodings that spreadsheets and editors write, with their names for iconv. Detection among all
#: encodings often names one that nobody uses.
_USUAL = {
    **{f"cp{page}": f"CP{page}" for page in (1252, 1250, 1251, 1253, 1254, 932, 949, 850)},
    "gb18030": "GB18030",
    "big5": "BIG5",
    "euc_jp": "EUC-JP",
    "koi8_r": "KOI8-R",
    "mac_roman": "MACINTOSH",
}

#: What text of another encoding has if it is read as Windows-1252: signs and capitals inside words,
#: signs that only begin a word behind one, and accents in a row.
_NOT_WESTERN = re.compile(
    "[a-z][²³¹ªº¼½¾ˆ˜¨¸¤¦¬¯µÞþÐð][a-z]|[a-zà-ÿ][À-ÞŠŒŽŸ][a-zà-ÿ]|[a-z][‚„¿¡]"
    r"|[a-z][^\w\s\x00-\x7f’‘´–—·\xad][a-z]|[À-ÿŠŒŽšœžŸƒ]{3}|[^\x00-\x7f]{4}"
)

_SAMPLE = 1 << 16  # bytes

#: Share of NUL characters above which text is UTF-16 that was read as UTF-8.
_MANY_NULS = 0.2


def encoding_of(start: bytes) -> str:
    """Return the codec that a text file's byte order mark says, else UTF-8."""
    return next((codec for mark, codec in _MARKS.items() if start.startswith(mark)), "utf-8")


def check_start(path: Path, start: bytes) -> None:
    """Refuse a file whose beginning is no text, or seems to be UTF-16 without a byte order mark."""
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(
            f"{path}: is a workbook or an archive, not text; save the sheet as csv in UTF-8"
        )
    if encoding_of(start) == "utf-8" and start.count(0) > _MANY_NULS * len(start):
        name = "UTF-16LE" if start[1:2] == b"\0" else "UTF-16BE"
        raise _not_utf8(path, "nearly every other byte is zero", name)


def decode(path: Path, data: bytes) -> str:
    """Return the text of a file, without its byte order mark.

    Raises:
        DataError: It is not UTF-8 and has no byte order mark. The message names the encoding that
            it seems to have.
    """
    check_start(path, data[:_SAMPLE])
    try:
        return data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        raise undecodable(path, data, encoding_of(data)) from error


def undecodable(path: Path, data: bytes, codec: str) -> DataError:
    """Return the error for a file that is no text in the encoding of its byte order mark."""
    if codec in ("utf-8", "utf-8-sig"):
        for number, line in enumerate(data.split(b"\n"), start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = f"byte {line[error.start]:#04x} on line {number}"
                return _not_utf8(path, byte, _detected(data))
    name = codec.removesuffix("-sig").upper()
    return DataError(
        f"{path}: begins with the byte order mark of {name}, but is not complete {name} text; save "
        "it again"
    )


def read_text(path: Path) -> str:
    """Return the text of a file; see `decode`."""
    try:
        return decode(path, path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _not_utf8(path: Path, why: str, encoding: str | None) -> DataError:
    if encoding is None:
        return DataError(f"{path}: is not UTF-8 text ({why}); save it as UTF-8")
    return DataError(
        f"{path}: is not UTF-8 text ({why}) and seems to be {encoding}; convert it, for example "
        f"with iconv -f {encoding} -t UTF-8"
    )


def _detected(data: bytes) -> str | None:
    """Return the name of an encoding that fits the lines that are not ASCII; None if none does."""
    from charset_normalizer import from_bytes  # slow to import, and only for this error

    lines = b"\n".join(line for line in data.split(b"\n") if not line.isascii())[:_SAMPLE]
    best = from_bytes(lines, cp_isolation=list(_USUAL), threshold=0.5).best()
    # Without a language, the detector takes a few accents among ASCII letters for anything.
    if (best is None or not best.coherence) and _is_western(lines):
        return _USUAL["cp1252"]
    if best is None:
        return None
    # Among encodings that give the same text, the first of the list is the most common.
    alike = {best.encoding, *best.could_be_from_charset}
    return next(name for codec, name in _USUAL.items() if codec in alike)


def _is_western(data: bytes) -> bool:
    """Return whether bytes read as a Western European language in Windows-1252."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    letters = sum(character.isalpha() for character in text)
    ours = sum(character.isascii() and character.isalpha() for character in text)
    return 2 * ours >= letters and _NOT_WESTERN.search(text) is None
