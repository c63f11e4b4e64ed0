"""Parquet files, by pyarrow (`pip install "tensorlib[data]"`): the Hub's datasets are such."""

import os
from bisect import bisect_right
from itertools import accumulate

from tensorlib.data.dataset import Dataset
from tensorlib.errors import FormatError


class Parquet(Dataset):
    """Rows of one Parquet file or several, as dicts; only `columns` are read, row groups as they are needed.

    Images are bytes under `["image"]["bytes"]`, as the Hub stores them. FormatError for files that are not sound or
    lack a column.
    """

    def __init__(self, paths, columns=None):
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise ImportError('Parquet: got no pyarrow; expected it: pip install "tensorlib[data]"') from error
        paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        self._files, self.columns, self._group = [], columns, (None, None)
        for path in map(os.fspath, paths):
            try:
                file = parquet.ParquetFile(path)
            except (pyarrow.ArrowException, OSError) as error:
                raise FormatError(path, "parquet", str(error).split("\n")[0], "a Parquet file") from error
            missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
            if missing:
                known = ", ".join(file.schema_arrow.names)
                raise FormatError(path, "columns", f"no {', '.join(missing)}", f"some of {known}")
            self._files.append((path, file))
        sizes = [f.metadata.row_group(g).num_rows for _, f in self._files for g in range(f.num_row_groups)]
        self._groups = [(f, g) for _, f in self._files for g in range(f.num_row_groups)]
        self._ends = list(accumulate(sizes))

    def __len__(self):
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"Parquet: got row {i}; expected one of {len(self)}")
        at = bisect_right(self._ends, i)
        if self._group[0] != at:
            file, group = self._groups[at]
            self._group = (at, file.read_row_group(group, self.columns).to_pylist())
        return self._group[1][i - (self._ends[at - 1] if at else 0)]
