"""From (video, question) to the preference dataset: sources, zoo, judges, pairs, writer."""

__version__ = "0.1.0"
