"""Results: frozen tables with their provenance, saved whole or not at all.

A result is a frozen dataclass that holds at least a tidy `table` and a `meta`;
`Result` gives it `.save()`, `.load()` and a view for notebooks (shown.py).
May import: files, tensors, shown.
"""

import csv
import hashlib
import importlib.util
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from mechsink.files import cannot_write, plain, to_json
from mechsink.shown import Shown
from mechsink.tensors import TableTensor, table_tensor

LARGE = 200_000
"""Rows from which a table is written as Parquet, where pyarrow is installed."""

R = TypeVar("R", bound="Result")  # not Self: beartype refuses it on a method


@dataclass(frozen=True, eq=False)  # eq=False: == between tables is not a bool
class Result(Shown):
    """One tidy table and where it came from; the base of every result type.

    `table`: one row per measured thing; NaN or no row where nothing was
    measured. `meta`: provenance (`provenance`), as it goes into meta.json.
    A subclass adds fields: tables are saved as NAME.csv, the rest in meta.json.
    """

    table: pd.DataFrame
    meta: dict[str, Any]

    def save(self, folder: Path | str) -> Path:
        """Write table.csv and meta.json, readable without mechsink.

        All files are written beside `folder` first and then moved into place,
        so a failure leaves nothing half-written. From `LARGE` rows on a table
        is Parquet if pyarrow is installed; meta.json says which under "files".

        Args:
            folder: new, or to be filled; made where it is missing.

        Returns:
            The folder.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = Path(folder)
        frames = {f.name: getattr(self, f.name) for f in fields(self)}
        tables = {k: v for k, v in frames.items() if isinstance(v, pd.DataFrame)}
        rest = {k: v for k, v in frames.items() if k not in {*tables, "meta"}}
        written = {name: _describe(name, table) for name, table in tables.items()}
        meta = {"result": type(self).__name__, "files": written, **self.meta}
        if rest:
            meta["fields"] = rest
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                for name, table in tables.items():
                    path = stage / written[name]["file"]
                    _write_table(table, path)
                    written[name]["sha256"] = _digest(path.read_bytes())
                text = to_json(plain({**meta, "files": written}))
                text = to_json({**json.loads(text), "sha256": _digest(text.encode())})
                (stage / "meta.json").write_bytes(text.encode())
                _move_into_place(stage, folder)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return folder

    @classmethod
    def load(cls: type[R], folder: Path | str) -> R:
        """Read back what `save` wrote; call it on the type that was saved.

        Args:
            folder: what `save` returned.

        Returns:
            The result, with the column types that its tables had.

        Raises:
            ValueError: the folder holds no result, or one of another type, or a file
                is not as it was saved (a checksum tells).
        """
        meta = _read_meta(Path(folder))
        kind, saved = meta.pop("result"), meta.pop("files")
        if kind != cls.__name__:
            raise ValueError(
                f"{cls.__name__}.load: {folder} holds a {kind}. Load it with "
                f"{kind}.load, or read its table alone with "
                "mechsink.results.read_table."
            )
        rest = meta.pop("fields", {})
        tables = {name: _read_table(Path(folder), saved[name]) for name in saved}
        return cls(**tables, **rest, meta=meta)

    def to_torch(
        self,
        column: str | None = None,
        axes: Sequence[str] | None = None,
        *,
        fill: float | int = math.nan,
        dtype: torch.dtype = torch.float64,
    ) -> TableTensor:
        """A column of `table` as a dense tensor over the columns that say where.

        Args:
            column: the numbers, in their unit. Default: the first that is no axis.
            axes: columns to lay them out over, in this order; together they must name
                one row each. Default: those before the first column of results, such
                as prompt, layer, pos, but not what stands there (token).
            fill: for places without a row. NaN in the table stays NaN.
            dtype: of the tensor, on the CPU.

        Returns:
            `.values`, Float[Tensor, "..."], one dimension an axis, and `.axes`: each
            one's coordinates in that order, numbers ascending.

        Raises:
            ValueError: no such column, or several rows at the same place.
        """
        return table_tensor(self.table, column, axes, fill=fill, dtype=dtype)


def read_table(folder: Path | str, name: str = "table") -> pd.DataFrame:
    """A saved result's table, with the column types it had.

    Raises:
        ValueError: the folder holds no result, or no such table.
    """
    saved = _read_meta(Path(folder))["files"]
    if name not in saved:
        raise ValueError(
            f"read_table: {folder} has no table {name!r}. It has: {', '.join(saved)}."
        )
    return _read_table(Path(folder), saved[name])


def _describe(name: str, table: pd.DataFrame) -> dict[str, Any]:
    large = len(table) >= LARGE and importlib.util.find_spec("pyarrow") is not None
    columns = {str(column): str(kind) for column, kind in table.dtypes.items()}
    file = f"{name}.parquet" if large else f"{name}.csv"
    return {"file": file, "rows": len(table), "columns": columns}


def _write_table(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        # Unquoted, "\r" would end a row. Quotes everywhere only where it needs them.
        texts = [*map(str, table.columns)]
        for _, column in table.select_dtypes(["object", "str", "category"]).items():
            texts += column.astype(str).unique().tolist()
        is_odd = any("\r" in text for text in texts)
        quoting = csv.QUOTE_NONNUMERIC if is_odd else csv.QUOTE_MINIMAL
        table.to_csv(path, index=False, na_rep="NaN", quoting=quoting)


def _read_table(folder: Path, saved: Mapping[str, Any]) -> pd.DataFrame:
    path = folder / Path(saved["file"]).name  # never outside the folder
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ImportError(
            f"load: {path} is Parquet, which needs pyarrow: pip install "
            "'mechsink[parquet]'."
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"load: {path} cannot be read ({error.strerror}). Give the folder that "
            "`result.save(folder)` returned, with all its files."
        ) from error
    if saved.get("sha256", _digest(data)) != _digest(data):  # older ones have none
        raise ValueError(
            f"load: {path} is not as it was saved. Measure again or put the file back; "
            "if the change is yours, read it with pandas.read_csv."
        )
    try:
        table = _parsed(data, path.suffix, saved["columns"])
    except Exception as error:  # of whatever kind pandas' parsers raise
        raise ValueError(
            f"load: {path} is damaged ({error}). Measure again or put the file back."
        ) from error
    if len(table) != saved["rows"]:
        raise ValueError(
            f"load: {path} has {len(table)} rows, but {saved['rows']} were saved. "
            "Measure again or put the file back."
        )
    return table


def _parsed(data: bytes, suffix: str, columns: Mapping[str, str]) -> pd.DataFrame:
    if suffix == ".parquet":
        return pd.read_parquet(io.BytesIO(data), engine="pyarrow")
    floats = {name: kind for name, kind in columns.items() if "float" in kind}
    # Floats by way of text: exact, where read_csv's own parser may round. No
    # text is taken for a missing value: a token may read "NA".
    as_text: Any = {**columns, **dict.fromkeys(floats, "str")}
    table = pd.read_csv(
        io.BytesIO(data),
        dtype=as_text,
        keep_default_na=False,
        names=list(columns),
        header=0,
        skip_blank_lines=False,  # a row may be a tab
    )
    return table.astype(floats)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"load: {folder} holds no saved result ({error}). Give the folder that "
            "`result.save(folder)` returned; it has a meta.json and its tables."
        ) from error
    if not isinstance(meta, dict) or not {"result", "files"} <= set(meta):
        raise ValueError(
            f"load: {path} was not written by `result.save`. Give the folder that "
            "`result.save(folder)` returned."
        )
    digest = meta.pop("sha256", None)
    if digest is not None and digest != _digest(to_json(meta).encode()):
        raise ValueError(
            f"load: {path} is not as it was saved. Measure again or put the file back; "
            "if the change is yours, read the tables with pandas.read_csv."
        )
    return meta


def _move_into_place(stage: Path, folder: Path) -> None:
    """Rename staged files into `folder`, meta.json last."""
    stage.chmod(0o777 & ~_umask())
    for path in stage.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if not folder.exists():
        stage.rename(folder)
        return
    staged = {path.name for path in stage.iterdir()}
    for name in sorted(staged, key=lambda name: name == "meta.json"):
        (stage / name).replace(folder / name)
    for name in staged - {"meta.json"}:  # the same table in its other form is stale
        other = {".csv": ".parquet", ".parquet": ".csv"}[Path(name).suffix]
        (folder / name).with_suffix(other).unlink(missing_ok=True)


def _umask() -> int:
    """Permissions that new files here go without."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
