"""Balancing in the life of a pool: filling a new disk from the full ones, when somebody wants it.

The wish and the place where the balancer is are in the job book; so it goes on after a restart, and
after it was stopped by hand. What lacks redundancy is mended first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from dwfs.errors import UsageError
from dwfs.node.services.jobs import JobStore
from dwfs.node.status import JobState, JobStatus
from dwfs.stripe import BalanceProgress, BalanceState

_SAVE_SECONDS: Final = 5.0


class PoolBalancer(Protocol):
    """`dwfs.stripe.Balancer`."""

    @property
    def state(self) -> BalanceState:
        """Where it is."""

    async def run(self) -> BalanceState:
        """Move until it is done; cancellation stops it."""

    def progress(self) -> BalanceProgress:
        """How far it is."""


class BalanceService:
    """`run` it; `start` and `stop` when asked to."""

    def __init__(
        self,
        jobs: JobStore,
        make: Callable[[BalanceState | None], PoolBalancer],
        mended: Callable[[], Awaitable[None]],
    ) -> None:
        """`make` makes a balancer that goes on from a state; `mended` waits until repair is quiet."""
        self._jobs = jobs
        self._make = make
        self._mended = mended
        self._wanted = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._balancer: PoolBalancer | None = None

    def start(self) -> JobStatus:
        """Begin, or go on. One that runs already just goes on."""
        book = self._jobs.book
        if not book.balance_wanted:
            book.balance_wanted = True
            if book.balance is None:
                book.balance_started_ns = self._jobs.now_ns()
            self._jobs.changed()
            self._wanted.set()
        return self._running()

    def stop(self) -> JobStatus:
        """Stop where it is; a later start goes on. Raises UsageError if it doesn't run."""
        book = self._jobs.book
        if not book.balance_wanted:
            raise UsageError("the pool is not being balanced")
        book.balance_wanted = False
        if self._balancer is not None:
            book.balance = self._balancer.state
        else:
            book.balance = book.balance or BalanceState()
        self._jobs.changed()
        if self._scope is not None:
            self._scope.cancel()
        return self._stopped()

    def job(self) -> JobStatus | None:
        """The balance at hand; None if there is none, not even one that was stopped."""
        book = self._jobs.book
        if book.balance_wanted:
            return self._running()
        return None if book.balance is None else self._stopped()

    def follow(self) -> Callable[[], JobStatus]:
        """A look at the balance at hand, also when it has ended."""
        started_ns = self._jobs.book.balance_started_ns

        def look() -> JobStatus:
            return self._jobs.ended("balance", "", started_ns) or self.job() or self._stopped()

        return look

    async def run(self) -> None:
        """Balance when asked to, for ever."""
        while True:
            self._wanted = trio.Event()
            if self._jobs.book.balance_wanted:
                await self._balance()
            else:
                await self._wanted.wait()

    async def _balance(self) -> None:
        book = self._jobs.book
        try:
            with trio.CancelScope() as self._scope:
                await self._mended()
                self._balancer = self._make(book.balance)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._save_now_and_then, self._balancer)
                    state = await self._balancer.run()
                    nursery.cancel_scope.cancel()
                self._conclude(state)
        finally:
            if self._balancer is not None and book.balance_wanted:
                book.balance = self._balancer.state
            self._balancer = None
            self._scope = None
            self._jobs.changed()

    async def _save_now_and_then(self, balancer: PoolBalancer) -> None:
        while True:
            await trio.sleep(_SAVE_SECONDS)
            self._jobs.book.balance = balancer.state
            self._jobs.changed()

    def _conclude(self, state: BalanceState) -> None:
        book = self._jobs.book
        book.balance_wanted = False
        book.balance = None
        self._jobs.finish(
            JobStatus(
                kind="balance",
                state="finished",
                detail="",
                done_bytes=state.moved_bytes,
                total_bytes=state.moved_bytes,
                started_ns=book.balance_started_ns,
                ended_ns=self._jobs.now_ns(),
                result=f"{state.moved_shards} shards moved; the disks are as even as they can be",
            )
        )

    def _running(self) -> JobStatus:
        if self._balancer is None:
            return self._status("waiting", "waits until what lacks redundancy is mended")
        progress = self._balancer.progress()
        return JobStatus(
            kind="balance",
            state="running",
            detail="moving shards from fuller disks to emptier ones",
            done_bytes=progress.bytes_done,
            total_bytes=progress.bytes_done + progress.bytes_left,
            bytes_per_second=progress.bytes_per_second,
            seconds_left=progress.seconds_left,
            started_ns=self._jobs.book.balance_started_ns,
        )

    def _stopped(self) -> JobStatus:
        return self._status("stopped", "stopped; `dwfs disk balance` goes on with it")

    def _status(self, state: JobState, detail: str) -> JobStatus:
        book = self._jobs.book
        moved = 0 if book.balance is None else book.balance.moved_bytes
        return JobStatus(
            kind="balance",
            state=state,
            detail=detail,
            done_bytes=moved,
            started_ns=book.balance_started_ns,
        )
