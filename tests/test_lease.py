"""Who works and who waits, over every kind of backend; the processes are real."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mlops_tasks import checkpoint, lease
from mlops_tasks.config.environment import Environment, LeaseTerms
from mlops_tasks.errors import DataError, Unavailable
from mlops_tasks.store import Store

PREFIX = "train/k"
QUICK = LeaseTerms(ttl_seconds=0.6)
AT_ONCE = LeaseTerms(ttl_seconds=30, wait_seconds=0)


def hold(store: Store, terms: LeaseTerms = QUICK, is_done: Callable[[], bool] = lambda: False) -> Any:
    return lease.held(store, PREFIX, terms=terms, run="dag/run", is_done=is_done)


def state(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = store.read_json(f"{PREFIX}/lease.json")
    return found


def elsewhere(store: Store, **changes: Any) -> dict[str, Any]:
    """A lease of a process on another machine."""
    other = {
        "holder": "x",
        "token": 7,
        "beat": 0,
        "run": "dag/other",
        "host": "far",
        "pid": 1,
        "machine": "far",
        "born": "1",
    }
    store.backend.write(f"{PREFIX}/lease.json", json.dumps(other | changes).encode())
    return other | changes


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_lease_is_let_go_at_once_and_each_holder_has_a_higher_token(store: Store) -> None:
    with hold(store) as first:
        assert state(store)["holder"] is not None
        assert state(store)["run"] == "dag/run"
    assert state(store)["holder"] is None
    started = time.monotonic()
    with hold(store, LeaseTerms(ttl_seconds=30)) as second:
        assert (first.token, second.token) == (1, 2)
    assert time.monotonic() - started < 10


def test_an_error_lets_go_too(store: Store) -> None:
    with pytest.raises(ValueError, match="broken"), hold(store):
        raise ValueError("broken")
    assert state(store)["holder"] is None


def test_one_that_may_not_wait_leaves_and_says_who_works(store: Store) -> None:
    elsewhere(store)
    with (
        pytest.raises(Unavailable, match=r"is held by process 1 on far for dag/other.*lease\.wait_seconds"),
        hold(store, AT_ONCE),
    ):
        pass
    assert state(store)["token"] == 7


def test_one_that_waits_gets_nothing_when_the_result_is_there(store: Store) -> None:
    elsewhere(store)
    asked: list[float] = []
    with hold(store, LeaseTerms(ttl_seconds=30), lambda: asked.append(0) or len(asked) == 3) as mine:
        assert mine is None
    assert state(store)["token"] == 7


def test_a_holder_without_a_sign_of_life_is_followed_after_a_whole_term(store: Store) -> None:
    elsewhere(store)
    started = time.monotonic()
    with hold(store) as mine:
        assert time.monotonic() - started >= QUICK.ttl_seconds
        assert mine.token == 8


def test_a_holder_that_shows_signs_of_life_keeps_it(store: Store) -> None:
    elsewhere(store)
    beats = itertools.count(1)
    patient = QUICK.model_copy(update={"wait_seconds": 4 * QUICK.ttl_seconds})
    # It beats whenever it is looked at, which no slow machine can come between.
    with pytest.raises(Unavailable), hold(store, patient, lambda: not elsewhere(store, beat=next(beats))):
        pass


def test_a_lease_is_renewed_while_it_is_held(store: Store) -> None:
    with hold(store, LeaseTerms(ttl_seconds=3)):
        wait_until(lambda: state(store)["beat"] >= 2)
        with pytest.raises(Unavailable), hold(store, LeaseTerms(ttl_seconds=3, wait_seconds=4)):
            pass


def test_a_renewal_whose_reply_was_lost_is_no_loss(store: Store) -> None:
    with hold(store) as mine:
        # As if the last sign of life had come through although an error was raised.
        store.backend.write(f"{PREFIX}/lease.json", lease._bytes({**mine._state, "beat": mine._state["beat"] + 1}))
        time.sleep(QUICK.ttl_seconds)
        assert not mine._is_lost
        assert mine._thread.is_alive()
    assert state(store)["holder"] is None


def test_a_lease_is_let_go_although_the_reply_to_its_last_renewal_was_lost(store: Store) -> None:
    with hold(store, LeaseTerms(ttl_seconds=600)) as mine:
        store.backend.write(f"{PREFIX}/lease.json", lease._bytes({**mine._state, "beat": 9}))
    assert state(store)["holder"] is None


def test_a_lease_that_was_removed_by_hand_while_it_is_held_is_still_held(store: Store) -> None:
    with hold(store) as mine:
        store.backend.delete(f"{PREFIX}/lease.json")
        wait_until(lambda: store.backend.read(f"{PREFIX}/lease.json"))
        assert (state(store)["holder"], state(store)["token"]) == (mine._state["holder"], mine.token)
        assert not mine._is_lost


def test_whoever_waits_goes_by_the_terms_of_the_holder(store: Store) -> None:
    elsewhere(store, ttl_seconds=600)
    with pytest.raises(Unavailable), hold(store, QUICK.model_copy(update={"wait_seconds": 3 * QUICK.ttl_seconds})):
        pass


def _hold_for_ever(store: Store, gate: Any) -> None:
    with hold(store, LeaseTerms(ttl_seconds=600)):
        gate.set()
        time.sleep(600)


def test_a_holder_of_this_machine_that_was_killed_is_followed_at_once(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    holder = context.Process(target=_hold_for_ever, args=(store, gate), daemon=True)
    holder.start()
    assert gate.wait(30)
    with pytest.raises(Unavailable, match=f"process {holder.pid} on "), hold(store, AT_ONCE):
        pass
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    started = time.monotonic()
    with hold(store, LeaseTerms(ttl_seconds=600)) as mine:
        assert mine.token == 2
    assert time.monotonic() - started < 30


def save(store: Store, *, step: int, token: int) -> None:
    with checkpoint.Saver(store, PREFIX, token=token, keep_last=9) as saver:
        saver.begin(checkpoint.Part({"w": (0, torch.ones(2))}, {}), step=step, best_step=None)
        saver.wait()


def test_one_that_was_out_of_touch_writes_no_checkpoint_any_more(store: Store) -> None:
    with hold(store) as zombie:
        lease.require(store, PREFIX, zombie.token)
        save(store, step=1, token=zombie.token)
        elsewhere(store, token=zombie.token + 1)
        with pytest.raises(Unavailable, match=r"process 1 on far for dag/other has taken over \(token 2 against 1\)"):
            save(store, step=2, token=zombie.token)
    assert checkpoint.steps(store, PREFIX) == [1]
    assert state(store)["token"] == 2, "a lease that is lost is not let go"


def test_a_checkpoint_does_not_move_the_pointer_of_a_later_holder(store: Store) -> None:
    save(store, step=4, token=3)
    with pytest.raises(Unavailable, match="its checkpoints count"):
        save(store, step=5, token=2)
    assert store.read_json(f"{PREFIX}/checkpoints/latest.json") == {"step": 4, "token": 3}


def test_a_lease_that_was_removed_by_hand_goes_on_from_the_token_of_the_pointer(store: Store) -> None:
    save(store, step=4, token=3)
    with hold(store) as mine:
        assert mine.token == 4
        save(store, step=5, token=mine.token)
    assert checkpoint.newest(store, PREFIX) == 5


def test_where_tokens_began_anew_the_one_from_before_is_refused_too(store: Store) -> None:
    with hold(store, LeaseTerms(ttl_seconds=600)) as first:  # which would make it anew with its next beat
        store.backend.delete(f"{PREFIX}/lease.json")
        with hold(store) as second:
            assert second.token == first.token
        elsewhere(store, token=first.token - 1)
        with pytest.raises(Unavailable, match="has taken over"):
            lease.require(store, PREFIX, first.token)


def test_a_file_that_is_no_lease_is_named(store: Store) -> None:
    store.backend.write(f"{PREFIX}/lease.json", b"<html>")
    with pytest.raises(DataError, match=r"lease\.json is no lease \(b'<html>'\)\. Remove it"), hold(store):
        pass


def test_the_thread_that_renews_does_not_keep_ranks_from_being_forked(environment: Environment) -> None:
    from mlops_tasks import distributed

    with hold(Store.of(environment)):
        wait_until(lambda: lease.THREAD_NAME in distributed._other_threads())
        assert lease.THREAD_NAME in distributed._FORK_SAFE_THREADS
