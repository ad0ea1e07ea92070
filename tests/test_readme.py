"""The README holds what it says: its commands are commands, its files are there, and its messages are the kit's.

The slow suite types the commands one after the other: `tests/readme/test_typed.py`.
"""

from __future__ import annotations

import ast
import importlib
import re

import pytest

from tests.readme import world
from tests.readme.commands import (
    README,
    REPO,
    Command,
    capitals,
    commands_of,
    commands_of_config,
    stand_ins,
    table,
    typed,
)
from tests.readme.mistakes import MISTAKES, PHRASES, SLOW, messages, shows
from tests.readme.parsers import Wrong, check

PAGES = (README, REPO / "recipes" / "configs" / "README.md")
COMMANDS = {page: commands_of(page) for page in PAGES}
TYPED = [(page, command) for page in PAGES for command in COMMANDS[page] if command.kind != "python"]
NAMED = [f"{page.parent.name}-{command.line}" for page, command in TYPED]
CONFIGS = [path for path in sorted(REPO.glob("*/configs/*.yaml")) if commands_of_config(path)]
OUTPUTS = ("--output", "--output_dir", "--output-dir", "--png")
FILE = re.compile(r"[\w.-]+\.(yaml|jsonl?|py|png|mp4|md)")
LINK = re.compile(r"\]\(([^)#\s]+)?(#[^)\s]+)?\)")


@pytest.mark.parametrize(("page", "command"), TYPED, ids=NAMED)
def test_the_real_parser_takes_every_command(page, command):
    check(command)


@pytest.mark.parametrize(("page", "command"), TYPED, ids=NAMED)
def test_a_planted_wrong_option_is_refused(page, command):
    with pytest.raises(Wrong):
        check(command, [*command.words, "--no-such-option"])
    for place, word in enumerate(command.words):
        if word.startswith("--"):
            other = [*command.words[:place], re.sub(r"^(--[^=]*)", r"\1x", word), *command.words[place + 1 :]]
            with pytest.raises(Wrong):
                check(command, other)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_the_commands_in_a_configs_comments_are_commands_too(config):
    for command in commands_of_config(config):
        check(command)
        named = [word for word in [*command.words, *command.variables.values()] if word.endswith((".yaml", ".py"))]
        assert all((REPO / word).is_file() for word in named), named


@pytest.mark.parametrize(
    "text",
    [
        "python -m dataset_builder bild c.yaml",
        "python -m dataset_builder export mmaip-v --shape nobody --output out",
        "python -m dataset_builder export mmaip-v --shape hound",
        "python -m recipes.nothing",
        "python -m cards push runs/demo --namespace",
        "python -m eval custom runs/demo/models/base eval/video_model.py",
        "accelerate launch recipes/nothing.py",
        "accelerate launch recipes/dpo.py --max_steps eight",
        "accelerate launch --num_processes many recipes/dpo.py",
        "torchrun --nproc-per-node 2 recipes/dpo.py --beta high",
        "python -m benchmarks.selection --near few",
        "make tea",
        "pip install -e .[tea]",
        "hf auth logon",
    ],
)
def test_what_is_wrong_otherwise_is_refused_too(text):
    with pytest.raises(Wrong):
        check(Command(1, "bash", text))


def test_a_block_with_a_program_that_is_not_known_is_no_silence(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nmake demo   # a comment\npython -m cards \\\n    doctor\n\ncurl x\n```\n")
    with pytest.raises(ValueError, match="line 6: `curl x`"):
        commands_of(page)
    page.write_text(page.read_text().replace("curl x", "") + "`make  test` and `make`, \n`python -m\neval`\n")
    found = [(command.line, command.kind, command.text) for command in commands_of(page)]
    assert found == [
        (2, "bash", "make demo"),
        (3, "bash", "python -m cards doctor"),
        (8, "inline", "make test"),
        (9, "inline", "python -m eval"),
    ]


def test_every_path_is_in_the_clone_or_made_by_an_earlier_command():
    made = {}
    lines = {command.text: command.line for command in reversed(COMMANDS[README])}
    for path, maker in table("made.yaml").items():
        made[path] = 0 if maker == "yours" else lines[maker]
    for command in COMMANDS[README]:
        if command.kind == "python":
            continue
        for option, value in zip(command.words, command.words[1:]):
            if option in OUTPUTS and not capitals(value):
                made.setdefault(value, command.line)
        for word in [*command.words[1:], *command.variables.values()]:
            path = word.split("=")[-1].split(",")[0]
            top = path.split("/")[0]
            ours = any(place == top or place.startswith(f"{top}/") for place in made) or (REPO / top).is_dir()
            if not (ours or FILE.fullmatch(path)) or path.startswith("-") or path in PROGRAM_WORDS or capitals(path):
                continue  # a Hub id, a number, a word
            by = [line for place, line in made.items() if path == place or path.startswith(f"{place}/")]
            assert (REPO / path).exists() or (by and min(by) <= command.line), f"line {command.line}: {path}"


PROGRAM_WORDS = {"eval", "cards", "dataset_builder", "recipes", "benchmarks"}  # after `python -m`


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    for target, heading in LINK.findall(text):
        if target.startswith("http"):
            continue
        there = page.parent / target if target else page
        assert there.exists(), target
        if heading:
            heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert heading[1:] in slugs, f"{target}{heading}"


@pytest.mark.parametrize("block", [c for c in COMMANDS[README] if c.kind == "python"], ids=lambda block: block.line)
def test_python_blocks_compile_and_import_what_is_there(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names)


def test_what_is_not_typed_is_listed_with_a_reason_and_is_on_the_page():
    there, left_out = {command.text for command in COMMANDS[README]}, table("not_run.yaml")
    for entry in left_out:
        assert entry["command"] in there, f"not on the page (any more): {entry['command']}"
        assert len(entry["reason"]) >= 3
        assert "instead" not in entry or callable(getattr(world, entry["instead"]))
        assert set(entry) <= {"command", "reason", "instead"}
    listed = [entry["command"] for entry in left_out]
    assert len(listed) == len(set(listed))
    # Nothing else is left out: a part of a command cannot be typed, so there is none.
    assert not [command.text for command in COMMANDS[README] if not command.whole]
    assert set(table("exit_codes.yaml") or {}) <= there - set(listed)


def test_every_capital_word_has_a_stand_in_and_none_is_idle():
    used = set()
    for command in COMMANDS[README]:
        if command.kind != "python":
            used |= capitals(command.text)
            assert not capitals(typed(command.text)), command.text
    assert used == set(stand_ins()) & used
    assert set(stand_ins()) <= used | {"NAMESPACE/NAME"}


def test_a_message_matches_only_what_it_says():
    assert shows("error: …: no …", "error: a.yaml: no key 'x'")
    assert not shows("error: …: no …", "error: a.yaml: one key")
    assert not shows("stopped", "it stopped")


def test_every_message_of_the_troubleshooting_has_its_mistake():
    assert len(messages()) >= 15
    assert all(len(do) > 20 for do in messages().values())
    readme = README.read_text(encoding="utf-8").partition("\n## Troubleshooting\n")[2].partition("\n## ")[0]
    assert readme.count("\n| `") == len(set(messages().values())), "a row that the pattern does not read"
    phrases = [phrase for name in MISTAKES for phrase in PHRASES[name]]
    for message in messages():
        assert sum(phrase in message for phrase in phrases) == 1, message
    assert len(phrases) == len(messages())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MISTAKES]
)
def test_a_mistake_is_answered_as_the_readme_says(name, tmp_path):
    said = MISTAKES[name](tmp_path)
    # datasets raises an error of its own, and torchrun adds a traceback of its own to our line
    foreign = name in ("decoded_without_torchcodec", "an_output_that_one_machine_sees")
    assert "Traceback" not in said or foreign, said
    found = {message for message in messages() if any(shows(message, line) for line in said.splitlines())}
    assert found == {m for m in messages() if any(phrase in m for phrase in PHRASES[name])}, said[-3000:]
