"""The preference pairs of a dataset in the shapes that other trainers read."""

from dataset_builder.export.run import SHAPES, ExportReport, export

__all__ = ["SHAPES", "ExportReport", "export"]
