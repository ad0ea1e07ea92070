"""What may be said of an executor, and in which type."""

from __future__ import annotations

import importlib.util
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.settings import near

# The names are those of datatrove's executors; `address` is Ray's. Whatever is left out keeps datatrove's default.
_OPTIONS: dict[str, dict[str, type]] = {
    "local": {},
    "slurm": {
        "partition": str,
        "time": str,
        "cpus_per_task": int,
        "mem_per_cpu_gb": int,
        "gpus_per_task": int,
        "tasks_per_job": int,
        "max_array_size": int,
        "qos": str,
        "job_name": str,
        "env_command": str,
        "condaenv": str,
        "venv_path": str,
        "mail_user": str,
        "sbatch_args": dict,
        "srun_args": dict,
    },
    "ray": {"address": str, "cpus_per_task": int, "mem_per_cpu_gb": float, "gpus_per_task": int},
}
_NEEDED = {"slurm": ("partition", "time")}
EXECUTORS = tuple(_OPTIONS)


def check_options(executor: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options in their types; words from a command line (``cpus_per_task=4``) are converted.

    Raises:
        KitError: an unknown executor or option, a wrong value, one that is missing, or a package that is missing.
    """
    if executor not in _OPTIONS:
        raise KitError(f"--executor {executor}: is none of {', '.join(EXECUTORS)}")
    known, made = _OPTIONS[executor], {}
    for name, value in options.items():
        if name not in known:
            hint = near(name, known) or (f"; known are {', '.join(known)}" if known else "; it takes none")
            raise KitError(f"--executor {executor}: option {name!r} is not known{hint}")
        made[name] = _typed(executor, name, value, known[name])
    for name in _NEEDED.get(executor, ()):
        if name not in made:
            raise KitError(f"--executor {executor}: needs the option {name!r}, as in {name}=…")
    packages = ("datatrove", "ray") if executor == "ray" else ("datatrove",)
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise KitError(f'--executor {executor} needs the package {package}: pip install -e ".[cluster]"')
    return made


def _typed(executor: str, name: str, value: Any, kind: type) -> Any:
    try:
        if kind is dict:
            if not isinstance(value, dict):
                value = dict(part.split("=", 1) for part in str(value).split(","))
            return {str(key): str(item) for key, item in value.items()}
        made = kind(value)
        if kind in (int, float) and made < 0:
            raise ValueError
        return made
    except (TypeError, ValueError):
        words = {int: "a whole number", float: "a number", dict: "of the form KEY=VALUE,KEY=VALUE"}
        raise KitError(f"--executor {executor}: {name}={value!r} must be {words.get(kind, 'text')}") from None
