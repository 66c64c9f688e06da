"""Text files of other projects: encodings, lines, and tables of any delimiter. Raises UserError
throughout."""

import codecs
import csv
import gzip
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO, cast

from asrlora.data.importers.fields import fold, meaning
from asrlora.errors import UserError

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
DELIMITERS = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "bars"}
UNQUOTED = "\t|"  # quotes in Common Voice's and LJ Speech's files open nothing
ENOUGH = 1 << 16  # characters, for the first lines


@contextmanager
def open_text(path: Path, newline: str = "") -> Iterator[TextIO]:
    """A text file, also behind gzip: UTF-8, or UTF-16 where a byte order mark says so."""
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            data = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
            head = data.read(4096)
            data.seek(0)
            encoding = "utf-16" if head.startswith(UTF16) else "utf-8-sig"
            if encoding != "utf-16" and b"\0" in head:
                raise UserError(f"{path}: is not UTF-8 text, for it holds NUL bytes; save it as UTF-8")
            with io.TextIOWrapper(data, encoding=encoding, newline=newline) as file:
                yield file
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 text (byte 0x{error.object[error.start]:02x}); save it from the"
            f" spreadsheet as CSV UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8 {path.name} >"
            f" new-{path.name}"
        ) from None
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line number, line), one by one: lines that hold samples are long."""
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, 1):
            yield f"{path}, line {number}", line


@dataclass(frozen=True)
class Table:
    """How a file of delimited text is read."""

    path: Path
    delimiter: str
    names: tuple[str, ...]  # of the columns, as line 1 has them
    skip: int  # lines before the first row
    quoted: bool

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """(file and line, cells) of every row that is not empty."""
        with open_text(self.path) as file:
            lines = itertools.islice(file, self.skip, None)
            reader, number = _reader(lines, self.delimiter, self.quoted), 0
            try:
                for cells in reader:
                    first, number = number + 1, reader.line_num
                    if any(cells):
                        plain = cells if self.quoted else map(_without_quotes, cells)
                        yield f"{self.path}, line {self.skip + first}", [cell.strip() for cell in plain]
            except csv.Error as error:
                raise UserError(f"{self.path}, line {self.skip + number + 1}: {error}") from None

    def records(self) -> Iterator[tuple[str, dict[str, str]]]:
        """(file and line, cells that are not empty by the name of their column)."""
        twice = [name for name, count in Counter(map(fold, self.names)).items() if name and count > 1]
        if twice:
            raise UserError(f"{self.path}, line 1: must name each column once, and names {twice[0]!r} twice")
        for where, cells in self.rows():
            if len(cells) < len(self.names) or any(cells[len(self.names) :]):
                raise UserError(
                    f"{where}: {len(cells)} cells where line 1 names {len(self.names)} columns; cells are"
                    f" split at {self.split_at}"
                )
            yield where, {name: cell for name, cell in zip(self.names, cells, strict=False) if name and cell}

    @property
    def split_at(self) -> str:
        """The delimiter as messages call it."""
        return DELIMITERS.get(self.delimiter, repr(self.delimiter))

    @property
    def decimal_comma(self) -> bool:
        """Whether 1,5 can be a number in it."""
        return self.delimiter != ","


def find_table(path: Path, known: Callable[[Sequence[str]], int]) -> Table:
    """The table as its first line has it, split where that line is best `known`, has most known names, and
    then most cells. The caller looks whether that is enough."""
    with open_text(path) as file:
        head = file.read(ENOUGH)
    lines = list(io.StringIO(head, newline=""))
    chosen = re.fullmatch(r'"?sep=(.)"?', "".join(lines[:1]).strip())  # a spreadsheet's own line
    skip = 1 if chosen else 0
    tables = []
    for delimiter in [chosen[1]] if chosen else DELIMITERS:
        quoted = delimiter not in UNQUOTED or "".join(lines[skip : skip + 1]).startswith('"')
        reader = _reader(iter(lines[skip:]), delimiter, quoted)
        try:
            names = tuple(name.strip() for name in next(reader, []))
        except csv.Error:
            continue
        tables.append(Table(path, delimiter, names, skip + reader.line_num, quoted))
    return max(
        tables,
        key=lambda table: (known(table.names), sum(map(bool, map(meaning, table.names))), len(table.names)),
    )


def _reader(lines: Iterator[str], delimiter: str, quoted: bool) -> Any:
    if quoted:
        return csv.reader(lines, delimiter=delimiter, strict=True)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def _without_quotes(cell: str) -> str:
    """A cell as a spreadsheet quotes it where it holds quotes: `"say ""hi"" twice"`. Others stay as they
    are."""
    inner = cell[1:-1]
    if cell[:1] == cell[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell
