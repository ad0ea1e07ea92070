"""The commands of ``python -m dataset_builder``, one module each with ``run(args) -> exit code``."""
