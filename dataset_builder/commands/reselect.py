"""``reselect DATASET --config RULES.yaml``: other rules over the stored scores, and not one call."""

from __future__ import annotations

import argparse

from dataset_builder.errors import EXIT_OK
from dataset_builder.loading import read_media
from dataset_builder.reselect import load_rules, reselect


def run(args: argparse.Namespace) -> int:
    """Select again, and say how stable the choice is."""
    summary = reselect(
        args.dataset,
        load_rules(args.config),
        args.output,
        media=read_media(args.media) if args.media else None,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    print(summary)
    for name, value in summary["stability"].items():
        print(f"{name:<24} {value}")
    if summary["videos_absent"]:
        print(f"{'videos absent':<24} {summary['videos_absent']} (null in the new version)")
    return EXIT_OK
