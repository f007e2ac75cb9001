"""Problems that others publish, or one's own, read with care: one module a format, beside `records`, which reads the files.

Owns which format a source is in and what was read. What pins a file is `pins`', made-up problems are `generated`'s, and what is
done with what was read is `pull`'s.
"""

from __future__ import annotations

from pathlib import Path

from mlops_tasks.config.sources import CodeContestsData, FileData, HumanEvalData, MbppData
from mlops_tasks.data.sources.codecontests import read_codecontests
from mlops_tasks.data.sources.humaneval import read_humaneval
from mlops_tasks.data.sources.mbpp import read_mbpp
from mlops_tasks.data.sources.reading import Reading, Unsupported
from mlops_tasks.data.sources.table import read_table

__all__ = ["Reading", "Unsupported", "read_source"]


def read_source(source: FileData, path: Path, *, name: str | None = None) -> Reading:
    """Read a file of problems, in the file's order.

    Args:
        source: says which format it is in.
        path: where the file, or a copy of it, lies.
        name: what messages call it; None: its path.

    Raises:
        UserError: no such file, or it is bad: file, line, field, what was found and what was expected.
    """
    if isinstance(source, MbppData):
        return Reading(tuple(read_mbpp(path, name=name)))
    if isinstance(source, HumanEvalData):
        return Reading(tuple(read_humaneval(path, split=source.split, name=name)))
    if isinstance(source, CodeContestsData):
        return read_codecontests(path, split=source.split, name=name)
    return Reading(tuple(read_table(path, source.columns, split=source.split, name=name)))
