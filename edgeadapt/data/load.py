"""Read a dataset: JSON Lines, CSV, Parquet, a folder of these, or a `datasets` folder."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edgeadapt.data.examples import Example, parse_example
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.extras import need
from edgeadapt.files import sha256_file, sha256_tree

Row = tuple[str, object]
"""Where a row is (`line 7`), and its fields."""


def load_examples(path: Path) -> list[Example]:
    """Read every example of a dataset, in file order (files of a folder by name).

    Args:
        path: a .jsonl, .csv, .tsv or .parquet file, a folder of such files, or a folder that
            `datasets.save_to_disk` wrote.

    Raises:
        InputError: nothing is there, the format is unknown, a row lacks a field, or no row is
            left; names the file, the line (row) and the field.
        CorruptFileError: a file is malformed.
    """
    examples = [
        parse_example(record, f"{file}, {where}")
        for file, reader in _files(path)
        for where, record in reader(file)
    ]
    if not examples:
        raise InputError(f"{path} holds no examples; expected at least one row")
    return examples


def data_hash(path: Path) -> str:
    """Hex SHA-256 of a dataset's content: of the file, or of all names and contents of a folder.

    Raises:
        InputError: nothing is there.
    """
    if not path.exists():
        raise InputError(f"the dataset {path} does not exist")
    return sha256_file(path) if path.is_file() else sha256_tree(path)


def _files(path: Path) -> list[tuple[Path, Callable[[Path], Iterable[Row]]]]:
    if not path.exists():
        raise InputError(f"the dataset {path} does not exist")
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise InputError(
                f"{path} ends in {path.suffix or 'nothing'!r}; expected {', '.join(_READERS)}, "
                "or a folder saved by datasets"
            )
        return [(path, _READERS[path.suffix.lower()])]
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return [(path, _read_datasets_folder)]
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in _READERS)
    if not files:
        raise InputError(
            f"{path} holds no dataset; expected {', '.join(_READERS)} files, or what datasets' "
            "save_to_disk writes"
        )
    return [(file, _READERS[file.suffix.lower()]) for file in files]


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                record = json.loads(raw.decode())
            except UnicodeDecodeError as error:
                raise CorruptFileError(f"{path}, line {number}: not UTF-8 text") from error
            except (ValueError, RecursionError) as error:
                raise CorruptFileError(f"{path}, line {number}: not valid JSON: {error}") from error
            yield f"line {number}", record


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses cells over 128 KiB
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] = []
        start = 1
        try:
            for row in reader:
                where, start = f"line {start}", reader.line_num + 1  # a cell may span lines
                if not row:
                    continue
                if not header:
                    header = row
                    continue
                if len(row) != len(header):
                    raise CorruptFileError(
                        f"{path}, {where}: {len(row)} fields, but the header has {len(header)}"
                    )
                yield where, dict(zip(header, row, strict=True))
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{path}, near line {start}: not UTF-8 text") from error
        except csv.Error as error:
            raise CorruptFileError(f"{path}, line {start}: {error}") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    need("pyarrow", "reading Parquet")
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    # Damaged pages surface as OSError, damaged text as UnicodeDecodeError (a ValueError).
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise CorruptFileError(f"{path}, after row {number}: not valid Parquet: {error}") from error


def _read_datasets_folder(path: Path) -> Iterator[Row]:
    need("datasets", "reading a datasets folder")
    import datasets
    import pyarrow

    try:
        loaded = datasets.load_from_disk(str(path))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is not a folder that datasets can load: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            raise InputError(
                f"{path} holds the splits {', '.join(sorted(loaded))}; give the folder of one"
            )
        loaded = loaded["train"]
    for number, record in enumerate(loaded, 1):
        yield f"row {number}", record


_READERS: dict[str, Callable[[Path], Iterable[Row]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
