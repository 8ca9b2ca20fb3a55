"""Rows to files of every kind."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """write(name, rows or text) -> path. The suffix decides the kind of file."""

    def _write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, str):
            path.write_text(rows)
        elif path.suffix in (".csv", ".parquet"):
            from datasets import Dataset

            getattr(Dataset.from_list(rows), f"to_{path.suffix[1:]}")(str(path))
        else:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return _write
