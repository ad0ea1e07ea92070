"""``python -m cards push``: a finished run as dataset, model and evaluator repos on the Hub.

In this order: everything is planned (`plan`, with what `copies` and `extras` write for the Hub only), the plan is
checked before anything leaves (`checks`, `leaks`), the repos are filled and read back (`upload`, on `remote`), and only
then tagged, tied by a collection and, if asked for, made public.
"""
