"""``attach DATASET --videos DIR``: an ids-only dataset with a person's own copies of its videos."""

from __future__ import annotations

import argparse
import sys

from dataset_builder.attach import attach
from dataset_builder.errors import EXIT_OK, EXIT_ROWS_LEFT_OUT


def run(args: argparse.Namespace) -> int:
    """Attach, and name every video that stays null."""
    output = args.output or args.dataset
    report = attach(args.dataset, args.videos, output, progress=not args.quiet, overwrite=args.overwrite)
    for entry in [*report.refused, *report.missing]:
        print(f"not attached: {entry}", file=sys.stderr)
    print(report)
    return EXIT_ROWS_LEFT_OUT if report.null else EXIT_OK
