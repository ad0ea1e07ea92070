"""The window of calls in flight: never too many, never waiting for the slowest block, and nothing lost on a stop."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.stages.remote import limited, run_blocks


def run(blocks: dict[int, int], concurrency: int, fail_at=None, finished=()):
    """Run blocks of so many calls each; returns what was finished, the order of the calls and the most in flight."""
    done, calls, state = {}, [], {"now": 0, "most": 0}
    stop = threading.Event()

    def items(block):
        return None if block in finished else (f"key{block}", [(block, i) for i in range(blocks[block])])

    async def one(item):
        state["now"] += 1
        state["most"] = max(state["most"], state["now"])
        calls.append(item)
        for _ in range(1 + (item[0] * 7 + item[1] * 3) % 5):
            await asyncio.sleep(0)
        state["now"] -= 1
        if item == fail_at:
            raise KitError("no more money")
        return item

    def finish(block, key, results):
        done[block] = (key, results)

    error = None
    try:
        asyncio.run(run_blocks(blocks, items, one, finish, concurrency, stop))
    except KitError as problem:
        error = problem
    return done, calls, state["most"], error


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12), concurrency=st.integers(1, 8))
def test_every_call_once_and_results_in_order(sizes, concurrency):
    blocks = dict(enumerate(sizes))
    done, calls, most, error = run(blocks, concurrency)
    assert error is None
    assert done == {block: (f"key{block}", [(block, i) for i in range(size)]) for block, size in blocks.items()}
    assert sorted(calls) == [(block, i) for block, size in blocks.items() for i in range(size)]
    assert most <= concurrency + max(2, concurrency // 4)


def test_finished_blocks_are_passed_over():
    done, calls, _, _ = run({0: 3, 1: 3, 2: 3}, 4, finished=(1,))
    assert set(done) == {0, 2} and {block for block, _ in calls} == {0, 2}


@settings(deadline=None, max_examples=30)
@given(where=st.tuples(st.integers(0, 9), st.integers(0, 4)), concurrency=st.integers(1, 6))
def test_a_failure_ends_new_calls_and_is_raised(where, concurrency):
    done, calls, _, error = run(dict.fromkeys(range(10), 5), concurrency, fail_at=where)
    assert str(error) == "no more money"
    assert where[0] not in done
    for block, (_, results) in done.items():
        assert results == [(block, i) for i in range(5)]  # what is stored is whole
    ready = concurrency + max(2, concurrency // 4)
    assert len(calls) <= calls.index(where) + 1 + 2 * ready


def test_a_block_that_cannot_be_read_is_raised():
    async def one(item):
        return item

    def items(block):
        raise KitError("the disk is gone")

    with pytest.raises(KitError, match="the disk is gone"):
        asyncio.run(run_blocks([0, 1], items, one, lambda *a: None, 2, threading.Event()))


def test_limits_are_shared_out():
    endpoint = {"concurrency": 64, "requests_per_minute": 100.0, "spend_limit": None, "base_url": "http://127.0.0.1/v1"}
    half = limited({"name": "a", "endpoint": endpoint}, 0.25)["endpoint"]
    assert (half["concurrency"], half["requests_per_minute"], half["spend_limit"]) == (16, 25.0, None)
    assert limited({"endpoint": endpoint}, 0.001)["endpoint"]["concurrency"] == 1
    assert endpoint["concurrency"] == 64
