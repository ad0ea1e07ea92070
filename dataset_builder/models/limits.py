"""What an endpoint's calls may not pass: so many a minute, and so much money."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from dataset_builder.models.base import BudgetReached
from dataset_builder.models.cache import CallCache

_LOOK_AGAIN = 0.02  # seconds


class Pace:
    """Calls evenly spaced, so that no minute holds more than the limit, whatever event loop they come from.

    Args:
        per_minute: most calls a minute; None for no limit.
        clock: seconds.
        sleep: waits so many seconds.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]):
        self.interval = 60.0 / per_minute if per_minute else 0.0
        self._clock, self._sleep, self._lock, self._next = clock, sleep, threading.Lock(), float("-inf")

    async def wait(self) -> None:
        """Return when the next call may be made."""
        if not self.interval:
            return
        with self._lock:
            now = self._clock()
            slot = max(now, self._next)
            self._next = slot + self.interval
        if slot > now:
            await self._sleep(slot - now)


class Payment:
    """What one attempt may cost at most, and what it did; the same until that is known, for it may have been paid."""

    def __init__(self, worst: float):
        self.worst = self.cost = worst


class Budget:
    """Keeps what was spent at an endpoint, with what the calls on the wire may still cost, within a limit.

    Args:
        account: the endpoint.
        cache: holds what was spent, in earlier runs and other processes too; None forgets it.
    """

    def __init__(self, account: str, cache: CallCache | None):
        self.account, self.cache = account, cache
        self._lock, self._spent = threading.Lock(), 0.0
        self._reserved, self._calls = 0.0, 0  # of the calls on the wire

    def spent(self) -> float:
        """What was spent so far."""
        return self._spent if self.cache is None else self.cache.spent(self.account)

    @asynccontextmanager
    async def reserve(self, payment: Payment, limit: float | None) -> AsyncIterator[None]:
        """Set aside what a call may cost; afterwards book what it did. Near the limit, wait for what others leave.

        Raises:
            BudgetReached: it may cost more than is left.
        """
        while not self._set_aside(payment.worst, limit):
            await asyncio.sleep(_LOOK_AGAIN)
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                self._reserved = self._reserved - payment.worst if self._calls else 0.0  # no rounding is left over
                if payment.cost and self.cache is not None:
                    self.cache.spend(self.account, payment.cost)
                self._spent += payment.cost

    def _set_aside(self, worst: float, limit: float | None) -> bool:
        """False when the calls on the wire have to end first."""
        with self._lock:
            if limit is not None:
                spent = self.spent()
                if spent + worst > limit:
                    raise BudgetReached(
                        f"{self.account}: {spent:.4g} of the spend limit {limit:g} are spent and the next call may "
                        f"cost {worst:.2g}; raise spend_limit and run the same command to go on from here"
                    )
                if spent + self._reserved + worst > limit and self._calls:
                    return False
            self._reserved += worst
            self._calls += 1
            return True


def budget_of(account: str, cache: CallCache | None) -> Budget:
    """The one budget of an endpoint for all models of this process that share a cache."""
    budget = Budget(account, cache)
    return budget if cache is None else cache.budgets.setdefault(account, budget)
