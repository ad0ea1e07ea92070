"""Controls: what each part of iterating and extrapolating brings. `run.py` starts them, `specs.py` names each."""
