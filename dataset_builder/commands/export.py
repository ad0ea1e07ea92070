"""``export DATASET --shape …``: the pairs as another trainer reads them."""

from __future__ import annotations

import argparse
import sys

from dataset_builder.errors import EXIT_OK, EXIT_ROWS_LEFT_OUT
from dataset_builder.export import export
from dataset_builder.loading import read_media


def run(args: argparse.Namespace) -> int:
    """Export, and say what was left out."""
    report = export(
        args.dataset,
        args.shape,
        args.output,
        split=args.split,
        media=read_media(args.media) if args.media else None,
        num_frames=args.num_frames,
        progress=not args.quiet,
        overwrite=args.overwrite,
    )
    for line in report.lines():
        print(line, file=sys.stderr)
    print(report)
    return EXIT_ROWS_LEFT_OUT if report.left_out else EXIT_OK
