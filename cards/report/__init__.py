"""``report.html``: one self-contained page about a run, with a browser of its preference pairs."""

from cards.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
