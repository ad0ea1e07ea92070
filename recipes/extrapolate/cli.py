"""The command: one checkpoint or adapter moved further along the line from WEAK to STRONG.

python -m recipes.extrapolate WEAK STRONG --alpha 0.3 --output OUT [--dtype float32]
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from dataset_builder.errors import EXIT_OK, EXIT_STOPPED, KitError, run_cli

DTYPES = ("float32", "bfloat16", "float16")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text: str) -> int:
    """Bytes of a size such as ``5GB`` or ``500MiB``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B)?", text.strip().upper())
    if match is None or (match[2] or "") not in {*UNITS, "B"} or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 5GB or 500MB")
    return max(1, int(float(match[1]) * (1 if match[2] == "B" else UNITS[match[2] or ""])))


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"alpha must be a finite number, not {text!r}")
    return value


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    top = argparse.ArgumentParser(
        prog="python -m recipes.extrapolate",
        description="Write the checkpoint (or LoRA adapter) STRONG + alpha * (STRONG - WEAK).",
    )
    top.add_argument(
        "weak", help="checkpoint folder that training started from; of an adapter: its last round, or its base"
    )
    top.add_argument("strong", help="checkpoint or adapter folder after training")
    top.add_argument("--alpha", type=number, required=True, help="0 gives STRONG, 1 doubles the step, -1 gives WEAK")
    top.add_argument("--output", type=Path, required=True, help="the new folder; it appears complete or not at all")
    top.add_argument("--dtype", choices=DTYPES, help="type of the saved weights (default: as in STRONG)")
    top.add_argument("--shard-size", type=size, default=size("5GB"), help="largest weight file (default: 5GB)")
    top.add_argument("--overwrite", action="store_true", help="replace the output folder")
    top.add_argument("--same-base", action="store_true", help="two adapters whose configs name their base differently")
    return top


def run(
    weak: str | Path,
    strong: str | Path,
    alpha: float,
    output: str | Path,
    dtype: str | None = None,
    shard_size: int = 5 * 10**9,
    overwrite: bool = False,
    same_base: bool = False,
    say=print,
) -> dict[str, Any]:
    """Extrapolate checkpoint folders or adapters into a new folder.

    Args:
        weak: what training started from: a checkpoint; for an adapter the adapter of the round before, or the base.
        strong: checkpoint or adapter after training.
        alpha: see `recipes.extrapolate.extrapolate`.
        output: the new folder; complete or absent.
        dtype: of the saved weights; None keeps STRONG's.
        shard_size: bytes of a weight file at most (checkpoints only).
        overwrite: replace `output`.
        same_base: accept adapters whose configurations name their base model differently.
        say: gets lines for the person.

    Returns:
        The content of ``extrapolation.json`` in the new folder.

    Raises:
        KitError: one line that says what is wrong; nothing was written then.
    """
    from recipes.checkpoints import place
    from recipes.extrapolate.adapters import extrapolate_adapter
    from recipes.extrapolate.folders import is_adapter
    from recipes.extrapolate.measure import remarks
    from recipes.extrapolate.stream import extrapolate_checkpoint

    output, strong = Path(output), Path(strong)
    _check_output(output, (Path(weak), strong), overwrite)

    def progress(line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)

    content: dict[str, Any] = {}

    def write(folder: Path) -> None:
        if is_adapter(strong):
            content.update(extrapolate_adapter(str(weak), strong, alpha, folder, dtype, same_base, say))
        elif is_adapter(Path(weak)):
            raise KitError(f"{weak} is an adapter and {strong} is not: merge it into its base first")
        else:
            content.update(extrapolate_checkpoint(Path(weak), strong, alpha, folder, dtype, shard_size, say, progress))

    try:
        place(output, write)
    except BaseException as error:
        shutil.rmtree(output.with_name(f".{output.name}.partial"), ignore_errors=True)
        if isinstance(error, OSError):  # a full disk, a folder that may not be written
            raise KitError(f"{error.filename or output}: {error.strerror or error}; nothing was written") from None
        raise
    narrow = any("16" in types for types in content["inputs"].values() if types)
    for line in remarks(content, narrow):
        say(line)
    say(f"{output}: alpha {alpha:g}, {content['dtype']}, moved {content['all']['moved']:.4g} from WEAK")
    return content


def _check_output(output: Path, inputs: tuple[Path, Path], overwrite: bool) -> None:
    if not output.name:
        raise KitError(f"--output {output}: name a new folder")
    for folder in inputs:
        if output.resolve() == folder.resolve() or output.resolve() in folder.resolve().parents:
            raise KitError(f"--output {output}: holds {folder}, which is read; name another folder")
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise KitError(f"--output {output}: not a folder; name another one")
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise KitError(f"--output {output}: is there already; remove it, name another folder or use --overwrite")


def main(argv: list[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    args = parser().parse_args(argv)

    def body() -> int:
        try:
            work()
        except KeyboardInterrupt:
            print("stopped; nothing was written", file=sys.stderr)
            return EXIT_STOPPED
        return EXIT_OK

    def work() -> None:
        run(
            args.weak,
            args.strong,
            args.alpha,
            args.output,
            args.dtype,
            args.shard_size,
            args.overwrite,
            args.same_base,
        )

    return run_cli(body)
