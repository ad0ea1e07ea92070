"""From (video, question) to the preference dataset: sources, zoo, judges, pairs, writer."""
