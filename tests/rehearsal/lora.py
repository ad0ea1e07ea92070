"""The part of a rehearsal that needs an adapter: a LoRA run of its own, from training to a stranger's ``PeftModel``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.rehearsal.rehearsal import Rehearsal

ROOT = Path(__file__).resolve().parents[2]
# Few steps: what is shown is the way, not a good model. So no round is thrown away either, whatever it answers.
SETTINGS = {
    **{
        "use_peft": "true",
        "rounds": 2,
        "stop_early": "false",
        "max_steps": 4,
        "validation_limit": 40,
        "learning_rate": 1e-3,
    },
    **{"max_malformed": 1, "max_repeated": 1, "max_chosen_drop": 1e9, "max_margin": 1e9, "max_length_ratio": "inf"},
}


class LoraRun:
    """A LoRA run on the rehearsed run's base and dataset, and its repo.

    Args:
        rehearsal: whose Hub and processes are used. The run lies beside the rehearsal's output, and the next rehearsal
            takes it as it is unless base or dataset have changed.
    """

    def __init__(self, rehearsal: Rehearsal):
        self.rehearsal = rehearsal
        self.folder = rehearsal.output.with_name(f"{rehearsal.output.name}-lora")
        self.base = f"tester/{rehearsal.plan.name}-base"
        self.repo = f"tester/{rehearsal.plan.name}-lora"

    @property
    def _words(self) -> list[str]:
        """The words of the training command."""
        run = self.rehearsal.run
        settings = {
            "config": ROOT / "recipes" / "configs" / "toy.yaml",
            "model_name_or_path": run.folder / "models" / "base",
            "dataset_name": run.dataset,
            "output_dir": self.folder,
            "overwrite": "true",
            **SETTINGS,
        }
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))]

    def train(self) -> str:
        """Train it as a person would who needs no release, and make it one that can be pushed."""
        process, token = self.rehearsal.process, self.rehearsal.hub.token
        there = len(list(self.folder.glob("round-*")))
        process("lora-train", ROOT / "recipes" / "iter_w2s.py", *self._words, token=token)
        name = self.repo.rpartition("/")[2]
        process("lora-finish", "-m", "cards", "finish", "--name", name, *self._words, token=token)
        arms = json.loads((self.folder / "arms.json").read_text())["arms"]
        said = ", ".join(f"{arm} {100 * each['accuracy']:.1f} %" for arm, each in arms.items())
        rounds = len(list(self.folder.glob("round-*")))
        return f"{rounds} rounds{' of an earlier rehearsal' if there else ''}; on test: {said}"

    def push(self) -> str:
        """Push it with adapters and merged weights, beside a base that is on the Hub under a name of its own."""
        process, hub = self.rehearsal.process, self.rehearsal.hub
        base = (self.rehearsal.run.folder / "models" / "base").absolute()
        code = "import sys; from huggingface_hub import *; create_repo(sys.argv[1]); "
        code += "upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])"
        process("lora-base", "-c", code, self.base, base, token=hub.token)
        dataset = self.rehearsal.plan.repo("dataset").repo_id
        options = ("--weights", "both", "--base", self.base, "--dataset", dataset, "--public")
        words = ("-m", "cards", "push", self.folder, "--namespace", "tester", *options)
        process("lora-push", *words, token=hub.token)
        files = hub.files(self.repo)
        held = [path for path in ("model.safetensors", "adapter/adapter_model.safetensors") if path in files]
        return f"{self.repo}: {', '.join(held)}; base_model {self.base}"

    def load(self) -> str:
        """The adapter by peft on the base that it names, in a clean process and cache."""
        from tests.rehearsal.rehearsal import Failed

        places = {"folder": str(max(self.folder.glob("arms/*/round-*/adapter")).absolute())}
        places["base"] = str((self.rehearsal.run.folder / "models" / "base").absolute())
        found = self.rehearsal.stranger("lora-adapter", "adapter", repo=self.repo, **places)
        if not (found["weights"] and found["equal"]):
            raise Failed(f"its {found['weights']} LoRA weights on {found['base']} are not those of the run")
        if found["merged"] > 1e-3:
            raise Failed(
                f"merged into its base it differs by {found['merged']:.2g} from the merged weights in the repo"
            )
        merged = f"merged they are the repo's weights within {found['merged']:.1g}"
        return f"{found['weights']} LoRA weights on {found['base']}, equal to the run's; {merged}"
