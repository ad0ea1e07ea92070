"""``python -m cards verify``: every number of a released card, computed again from the released rows.

`page.py` reads a card and keeps account of which of its numbers a rule has dealt with; `checks.py` holds what was
found; `rows.py`, `dataset.py` and `front.py` know dataset repos, `model.py` model repos, `evaluator.py` evaluators;
`command.py` fetches a repo and says which of them it is.
"""
