"""A worker process: ``python -m dataset_builder.stages.worker JOB.json STAGE…`` makes the local shards of its blocks.

Sharing out blocks rather than members means that the clips of a block are decoded by one worker only, and that judging
a block needs nobody else's answers. A worker prints one JSON line per finished block on stdout and ends when its stdin
closes, that is, when its parent dies.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.stages.job import Job
from dataset_builder.stages.local import run_local


def main(argv: list[str]) -> int:
    """Entry of the process; progress as JSON lines on stdout."""
    job = Job(**json.loads(Path(argv[0]).read_text()))

    def follow_parent() -> None:
        # Ends when the parent's end of the pipe closes, however it died. Not sys.stdin: its lock would be held at exit.
        while os.read(0, 1 << 10):
            pass
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()

    def say(**message: Any) -> None:
        print(json.dumps(message), flush=True)

    try:
        for stage in argv[1:]:
            run_local(job, stage, lambda stage, n: say(stage=stage, n=n))
    except KitError as error:
        say(error=str(error))
        return 2
    say(done=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
