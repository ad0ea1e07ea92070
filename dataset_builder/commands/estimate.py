"""``estimate CONFIG.yaml``: what a build would take, before anything is spent."""

from __future__ import annotations

import argparse

from dataset_builder.errors import EXIT_OK, KitError
from dataset_builder.estimate import count_sources, estimate
from dataset_builder.settings import load_build_config


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    config = load_build_config(args.config)
    if config.imports:
        print("nothing is asked: preference rows need neither zoo nor judges")
        return EXIT_OK
    questions, videos = args.questions, args.videos
    if questions is None:
        counted = count_sources(config)
        if counted is None:
            raise KitError("the questions of this config cannot be counted here: give --questions N")
        questions, videos = counted[0], videos or counted[1]
    found = estimate(
        config,
        questions,
        videos or max(1, questions // 3),
        latency=args.latency,
        local_seconds=args.local_seconds,
    )
    print(found)
    return EXIT_OK
