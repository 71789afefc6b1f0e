"""Read CSV files with a header, row by row."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from weaklabels.files import read_text

REST = "more values than columns"  # key of a row's values for which the header has no name


def read_table(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(file:line, row) of a CSV file in UTF-8; a row's values by the names of the header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header lacks one of `columns`, or a line cannot be read.
    """
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), restkey=REST)
    try:
        missing = [name for name in columns if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: the header lacks {missing}; expected {','.join(columns)}")
        for row in rows:
            yield f"{path}:{rows.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: no row of CSV ({error}); correct it") from error
