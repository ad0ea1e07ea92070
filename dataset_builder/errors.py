"""Errors a person can act on, and the wrapper every command line of the kit ends in."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_OK = 0
EXIT_CANNOT_RUN = 2  # nothing was done: the configuration or the environment has to change first
EXIT_ROWS_LEFT_OUT = 3  # the work was finished, but some rows could not be used
EXIT_BUDGET = 4  # a spend limit was reached: nothing is lost, and a higher limit goes on from here
EXIT_UNJUDGED = 5  # more answers than allowed have no verdict: the figures are there, and should not be trusted
EXIT_STOPPED = 130  # what a shell expects after Ctrl-C


class KitError(Exception):
    """One clear line that names the thing that is wrong and says what to do. Shown without a traceback."""

    exit_code = EXIT_CANNOT_RUN


class RowError(KitError):
    """One row of an input file that cannot be used; the other rows go on.

    Args:
        file: the file the row came from, as the person wrote it.
        row: 1-based line (JSONL) or row number.
        field: the field that is wrong, or None when the row as a whole is.
        reason: what is wrong and what to do.
        kind: a short word the summaries count by, such as ``missing_video``.
    """

    def __init__(self, file: str, row: int, field: str | None, reason: str, kind: str = "invalid"):
        self.file, self.row, self.field, self.reason, self.kind = str(file), row, field, reason, kind
        where = f"{file}:{row}" if field is None else f"{file}:{row}: field '{field}'"
        super().__init__(f"{where}: {reason}")


def run_cli(main: Callable[[], int | None]) -> int:
    """Run a command's body and turn what goes wrong into one line on stderr and an exit code.

    Returns:
        What ``main`` returned (None counts as 0), a :class:`KitError`'s ``exit_code``, 130 for Ctrl-C.
    """
    try:
        return main() or EXIT_OK
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_STOPPED
