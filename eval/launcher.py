"""``python -m eval`` with LightEval's words: the same commands, on our tasks only, also without a network."""

from __future__ import annotations

import os
import sys

from dataset_builder.errors import KitError

WORDS = ("accelerate", "baseline", "bundle", "custom", "endpoint", "eval", "nanotron", "sglang", "tasks", "vllm")


def run_lighteval(arguments: list[str]) -> int:
    """Run a LightEval command line in this process.

    Args:
        arguments: what would follow ``lighteval``, such as ``["tasks", "list"]``.

    Returns:
        The exit code.

    Raises:
        KitError: for what the kit itself finds wrong (no such task, dataset or checkpoint).
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print("loading LightEval, about ten seconds …", file=sys.stderr, flush=True)

    import typer
    from lighteval.__main__ import app

    from eval.lighteval_adapter import install

    install()
    command = typer.main.get_command(app)
    try:
        # Not standalone: a KitError must reach the caller as it is, not as typer's framed traceback
        outcome = command.main(args=arguments, prog_name="python -m eval", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except FileNotFoundError as problem:  # LightEval opens the files it is given without looking first
        raise KitError(f"{problem.filename or problem}: no such file") from problem
    except Exception as problem:
        # typer carries click inside, under a private name: its usage errors are told by what they can do
        if not (hasattr(problem, "show") and hasattr(problem, "exit_code")):
            raise
        problem.show()
        return problem.exit_code
    return outcome if isinstance(outcome, int) else 0
