"""Run a hub by hand: ``python -m tests.hub FOLDER --port P`` prints what a client needs, and serves until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import signal
import threading

from tests.hub import LoopbackHub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description="A Hugging Face Hub on loopback.")
    parser.add_argument("folder", help="holds its state; goes on with what is there")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--user", default="tester", help="owner of the tokens, and a namespace")
    parser.add_argument("--org", action="append", default=[], help="a further namespace of the user; may be repeated")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
    with LoopbackHub(options.folder, options.user, tuple(options.org), options.port) as hub:
        about = {"endpoint": hub.endpoint, "token": hub.token, "read_token": hub.read_token}
        print(json.dumps(about), flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
