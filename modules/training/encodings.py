"""Text files of any encoding: marks at the beginning are followed, what is not UTF-8 is named, and converted when somebody asks."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import TextIO

from modules.errors import UserError
from modules.library.entries import why_not_read
from modules.library.paths import written_whole

NOT_READ = "\udcff"
"""Stands in a text for bytes that are no character; like every half of a surrogate pair, it makes its row a broken one."""
NAMES = {
    "gb18030": "GBK",
    "big5": "Big5",
    "cp1252": "Latin-1",
    "shift_jis": "Shift-JIS",
    "euc_kr": "EUC-KR",
    "cp1251": "Windows-1251",
    "utf-16-le": "UTF-16 without a mark",
    "utf-16-be": "UTF-16 without a mark",
}
"""Encodings that people's files have, by Python's names; cp1252 is what Windows writes as Latin-1."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD = 1 << 20
_SAMPLE = 1 << 17
_A_FEW = 4


class NotUtf8(UserError):
    """file: the one that is meant; likely: the encoding it probably has, by Python's name, None where that is unknown."""

    def __init__(self, file: Path, likely: str | None) -> None:
        if likely:
            advice = (
                f"It is probably {NAMES[likely]}: convert it to UTF-8 on the Training tab (Show data), or save it as UTF-8."
            )
        else:
            advice = "Save it as UTF-8."
        super().__init__(f"{file.name} is not UTF-8 text. {advice}", param="dataset")
        self.file = file
        self.likely = likely


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """The text of a file; single bytes that are no character become halves of surrogate pairs. Raises NotUtf8, OSError."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    encoding = _marked(head)
    if encoding is None:
        if _is_foreign(head):
            raise NotUtf8(path, likely_encoding(head))
        encoding = "utf-8"
    codecs.register_error("not_read", _not_read)
    return path.open(
        encoding=encoding, errors="surrogateescape" if encoding.startswith("utf-8") else "not_read", newline=newline
    )


def likely_encoding(data: bytes) -> str | None:
    """The encoding in NAMES that bytes which are not UTF-8 most probably have; None where none fits."""
    from charset_normalizer import from_bytes

    if _is_wide(data):
        even, odd = data[:2000:2].count(0), data[1:2000:2].count(0)
        return "utf-16-le" if odd > even else "utf-16-be"
    start = max(0, (first.start() if (first := re.search(rb"[^\x00-\x7f]", data)) else 0) - 1000)
    start = data.rfind(b"\n", 0, start) + 1  # no character is cut through at a line break
    sample = data[start : start + _SAMPLE]
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    runs = re.findall(rb"[\x80-\xff]+", sample)
    letters = b"".join(runs)
    if runs and sum(len(run) == 1 for run in runs) * 10 >= len(runs) * 6 and not re.search(rb"[\x81\x8d\x8f\x90\x9d]", letters):
        return "cp1252"  # letters with accents stand alone between others
    best = from_bytes(sample, cp_isolation=[name for name in NAMES if not name.startswith("utf")]).best()
    return best.encoding if best is not None and best.encoding in NAMES else None


def likely_if_foreign(path: Path) -> str | None:
    """The encoding that a file most probably has, where more of it is no UTF-8 than is; None for all others. Raises OSError."""
    if path.suffix.lower() == ".parquet" or why_not_read(path):
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD)
    strange, good = _strange(head)
    return likely_encoding(head) if _marked(head) is None and (strange > good or _is_wide(head)) else None


def convert(path: Path) -> str:
    """Write a file that is not UTF-8 anew as UTF-8; what it was stays beside it. Returns the name of its old encoding. Raises UserError."""
    data = path.read_bytes()
    if _marked(data) or not (_has_strange_bytes(data) or _is_wide(data)):
        raise UserError(f"{path.name} is read as it is: there is nothing to convert.", param="dataset")
    likely = likely_encoding(data)
    if likely is None:
        raise NotUtf8(path, None)
    try:
        text = data.decode(likely)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path.name} is probably {NAMES[likely]}, but byte {error.start + 1} is no character of it. Save it as UTF-8.",
            param="dataset",
        ) from None
    names = (f"{path.name}.{likely}{f'-{number}' if number > 1 else ''}" for number in range(1, 1000))
    kept = next(place for name in names if not (place := path.with_name(name)).exists() or place.read_bytes() == data)
    with written_whole(kept) as draft:
        draft.write_bytes(data)
    with written_whole(path) as draft:
        draft.write_bytes(text.encode())
    return NAMES[likely]


def _marked(head: bytes) -> str | None:
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)


def _is_foreign(head: bytes) -> bool:
    """Whether a text is in another encoding as a whole: some bytes that are no UTF-8 are damage, and cost their rows alone."""
    if _is_wide(head):
        return True
    if not _has_strange_bytes(head):
        return False
    strange, good = _strange(head)
    if strange < _A_FEW or strange <= good:
        return False
    lines = [line for line in head.split(b"\n") if line.strip()]
    return sum(map(_has_strange_bytes, lines)) * 10 >= len(lines)


def _is_wide(data: bytes) -> bool:
    """Whether it is UTF-16 without a mark: every other byte of what is written in Latin letters is zero."""
    return data[:2000].count(0) * 4 > len(data[:2000])


def _strange(data: bytes) -> tuple[int, int]:
    """(bytes that are no UTF-8, characters beyond ASCII that are); the end may cut through one."""
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data)
    return len(re.findall("[\udc80-\udcff]", text)), len(re.findall("[^\0-\x7f\udc80-\udcff]", text))


def _has_strange_bytes(data: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return True
    return False


def _not_read(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return NOT_READ, error.end
