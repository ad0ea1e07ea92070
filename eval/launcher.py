"""``python -m eval`` with LightEval's words: the same commands, on our tasks only, also without a network."""

from __future__ import annotations

import os
import sys

from dataset_builder.errors import KitError

WORDS = ("accelerate", "baseline", "bundle", "custom", "endpoint", "eval", "nanotron", "sglang", "tasks", "vllm")


def run_lighteval(arguments: list[str], program: str = "python -m eval") -> int:
    """Run a LightEval command line in this process.

    Args:
        arguments: what would follow ``lighteval``, such as ``["tasks", "list"]``.
        program: how its usage messages call the command.

    Returns:
        The exit code: 3 if rows of the data were left out, 5 if too many answers have no verdict, as for the other
        commands.

    Raises:
        KitError: for what the kit itself finds wrong (no such task, dataset or checkpoint).
    """
    if "--push-to-hub" in arguments and not any(word.startswith("--results-org") for word in arguments):
        raise KitError("--push-to-hub needs --results-org NAMESPACE, the person or organisation to push to")
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
        outcome = command.main(args=arguments, prog_name=program, standalone_mode=False)
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
