"""A rehearsal of the release: a finished run is pushed to a loopback Hub and used from there as a stranger would.

`rehearsal.py` (the steps), `lora.py` (those with an adapter), `stranger.py` (what a stranger types, in a process of
its own), `pages.py` (the repo pages as files to look at).
"""
