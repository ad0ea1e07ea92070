"""One hub and one client's process for the tests of this folder."""

from __future__ import annotations

import pytest

from tests.hub import Client, LoopbackHub

PART = 100_000  # bytes: objects above come in parts
LARGE = 50_000  # bytes: files above are large objects whatever their name
PAGE = 4


@pytest.fixture(scope="package")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    with LoopbackHub(folder, orgs=("lab",), page_size=PAGE, lfs_above=LARGE, part_size=PART) as running:
        yield running


@pytest.fixture(scope="package")
def client(hub, tmp_path_factory):
    """One process for all tests: ``api`` may write, ``reader`` may read, ``nobody`` has no token."""
    with Client(hub.environment(tmp_path_factory.mktemp("home"))) as process:
        process.run(f"""
            import os, pathlib, tempfile
            from huggingface_hub import *
            from huggingface_hub import CommitOperationAdd as Add
            from huggingface_hub import CommitOperationCopy as Copy
            from huggingface_hub import CommitOperationDelete as Delete
            api, reader, nobody = HfApi(), HfApi(token="{hub.read_token}"), HfApi(token=False)

            def commit(repo, *operations, **rest):
                operations = [Add(*one) if isinstance(one, tuple) else one for one in operations]
                return api.create_commit(repo, operations, commit_message=rest.pop("title", "work"), **rest).oid
        """)
        yield process


@pytest.fixture
def repo(client, request):
    """A new private model repo of the test's own."""
    name = f"tester/{request.node.name.partition('[')[0].replace('_', '-')}"
    client.run(f"repo = api.create_repo('{name}', private=True).repo_id")
    return name
