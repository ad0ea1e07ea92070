"""The selection: which pairs of answers become the dataset, and why the others do not."""

from dataset_builder.selection.run import filter_imported, select
from dataset_builder.selection.stability import compare_selections

__all__ = ["compare_selections", "filter_imported", "select"]
