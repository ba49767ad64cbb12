"""The report that every run leaves in its folder at its end: `report.json` and `report.html`.

    with report_at_end(folder, note) as report:
        run.run()
    report.summary

Both are made from the journal alone, and anew by a run that is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import PenstockError
from penstock.federated.report.page import write_page
from penstock.federated.report.records import JOURNAL
from penstock.federated.report.summary import Summary, summarise_folder
from penstock.loaders.partial_file import partial_file

REPORT_JSON, REPORT_PAGE = "report.json", "report.html"


def write_report(folder: Path, note: Callable[[str], None] | None = None) -> Summary:
    """Write both files, each whole or not at all; what they say is returned.

    Args:
        note: see `read_records`.

    Raises:
        StorageError: there is no journal, or the folder does not take the files.
        FormatError: the journal is damaged, or holds no whole round.
    """
    summary = summarise_folder(folder, note)
    text = json.dumps(summary.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)
    with partial_file(folder / REPORT_JSON) as (handle, _):
        handle.write(text.encode() + b"\n")
    write_page(summary, folder / REPORT_PAGE)
    return summary


class Report:
    """What `report_at_end` wrote."""

    summary: Summary


@contextmanager
def report_at_end(folder: Path, note: Callable[[str], None]) -> Iterator[Report]:
    """Write the report when the block ends, also by an error, where there is a round to report.

    What is given has the summary once the block ended well.

    Raises:
        StorageError, FormatError: as `write_report`, after a block that ended well; after an error
            a note tells of it, and the error goes on.
    """
    made = Report()
    try:
        yield made
    except BaseException:
        if (folder / JOURNAL).exists():
            try:
                write_report(folder, note)
            except PenstockError as error:
                note(f"no report was written: {error}")
        raise
    made.summary = write_report(folder, note)
