"""Bias audits: how far a judge's verdicts follow anything but the video and the answer."""

from eval.audit.cases import Case, Known, cases_of_benchmark, draw_cases, read_responses, read_set, set_fingerprint
from eval.audit.report import audit_markdown, audit_summary
from eval.audit.run import audit

__all__ = [
    "Case",
    "Known",
    "audit",
    "audit_markdown",
    "audit_summary",
    "cases_of_benchmark",
    "draw_cases",
    "read_responses",
    "read_set",
    "set_fingerprint",
]
