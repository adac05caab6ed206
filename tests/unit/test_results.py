# SPDX-License-Identifier: Apache-2.0
"""Results: completing futures natively, and the turn between the collector and who waits alone."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf
import ipcbuf_mp._pickling  # noqa: F401  # sets the codec

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 60
MOMENT = 0.02
RESULT, ERROR = 0, 1


class Plain:
    """What `settle` needs of a future."""

    def __init__(self, plain: bool = True) -> None:
        self._plain = plain
        self._state = "PENDING"
        self._result: Any = None
        self._call: Any = "the arguments"


class Desk:
    """A Results with its pending futures and the sender that workers have."""

    def __init__(self, segment: ipcbuf.Segment) -> None:
        self.sender, receiver = segment.channel(shared=True)
        self.pending: dict[int, Plain] = {}
        self.results = ipcbuf.Results(receiver, self.pending)

    def enter(self, task_id: int, plain: bool = True) -> Plain:
        future = self.pending[task_id] = Plain(plain)
        return future

    def answer(self, task_id: int, value: Any) -> None:
        self.sender.send_object((task_id, RESULT, value))


@pytest.fixture
def desk(segment: ipcbuf.Segment) -> Desk:
    return Desk(segment)


@pytest.fixture
def collected(desk: Desk) -> Iterator[list[Any]]:
    """What comes to a collector thread, which ends with the message "end"."""
    messages: list[Any] = []

    def collect() -> None:
        while (message := desk.results.receive()) != "end":
            messages.append(message)

    thread = threading.Thread(target=collect)
    thread.start()
    yield messages
    desk.sender.send_object("end")
    desk.results.recall()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def stand_aside(desk: Desk, value: int = 0) -> int:
    """Wait alone until the collector lets us. Return the last number used."""
    number = 1000
    while desk.results.alone == 0:
        number += 1
        assert number < 100_000
        future = desk.enter(number)
        desk.results.wait_alone(future, number, 0)
        desk.answer(number, value)
        desk.results.wait_alone(future, number, PATIENCE)
        wait_for(lambda future=future: future._state == "FINISHED")
    return number


# --- the collector ---


def test_plain_results_complete_their_futures_at_once(desk: Desk) -> None:
    futures = [desk.enter(i) for i in range(1, 4)]
    for i in range(1, 4):
        desk.answer(i, [i])

    assert desk.results.receive(0) is None  # nothing is pending: look around

    assert [future._result for future in futures] == [[1], [2], [3]]
    assert {future._state for future in futures} == {"FINISHED"}
    assert {future._call for future in futures} == {None}
    assert desk.pending == {}
    assert desk.results.settled == 3


@pytest.mark.parametrize(
    "message",
    [(7, ERROR, "an error"), (8, RESULT, "of nobody"), (7, RESULT), "text", (7.0, RESULT, 1)],
    ids=repr,
)
def test_everything_else_is_returned(desk: Desk, message: Any) -> None:
    future = desk.enter(7)
    desk.sender.send_object(message)

    assert desk.results.receive(0) == message
    assert future._state == "PENDING"
    assert desk.pending == {7: future}


def test_a_future_that_somebody_looks_at_is_left_to_the_caller(desk: Desk) -> None:
    future = desk.enter(1, plain=False)
    desk.answer(1, "x")

    assert desk.results.receive(0) == (1, RESULT, "x")
    assert future._state == "PENDING"


def test_other_threads_run_in_a_flood_of_results(desk: Desk) -> None:
    for i in range(1, 1001):
        desk.enter(i)
        desk.answer(i, i)

    assert desk.results.receive(0) is None
    assert 0 < len(desk.pending) < 1000


def test_what_does_not_unpickle_is_raised(desk: Desk) -> None:
    desk.enter(1)
    desk.answer(1, Unreadable())

    with pytest.raises(ZeroDivisionError):
        desk.results.receive(0)


class Unreadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return divide, (1, 0)


def divide(x: int, y: int) -> float:
    return x / y


def test_nothing_in_time(desk: Desk) -> None:
    with pytest.raises(ipcbuf.ChannelEmpty):
        desk.results.receive(MOMENT)


def test_it_takes_a_receiver() -> None:
    with pytest.raises(TypeError, match="needs a Receiver"):
        ipcbuf.Results("no receiver", {})  # type: ignore[arg-type]


# --- who waits alone ---


def test_the_collector_has_the_turn_first(desk: Desk) -> None:
    future = desk.enter(1)
    desk.answer(1, "x")

    assert not desk.results.wait_alone(future, 1, PATIENCE)
    assert future._state == "PENDING"
    assert not desk.results.is_awaited


def test_after_lone_waits_in_a_row_who_waits_takes_it(desk: Desk, collected: list[Any]) -> None:
    number = stand_aside(desk, 5)

    assert desk.results.alone == 1
    assert desk.pending == {}
    assert number < 99_000
    assert set(collected) <= {None}


def test_a_message_for_others_goes_to_the_collector(desk: Desk, collected: list[Any]) -> None:
    stand_aside(desk)
    future = desk.enter(1)
    desk.sender.send_object((4711, 4, "has died"))

    while not desk.results.wait_alone(future, 1, MOMENT) and (4711, 4, "has died") not in collected:
        pass

    wait_for(lambda: (4711, 4, "has died") in collected)
    assert future._state == "PENDING"


def test_a_pickled_result_is_unpickled_by_the_collector(desk: Desk, collected: list[Any]) -> None:
    stand_aside(desk)
    future = desk.enter(1)
    desk.answer(1, Whose())

    desk.results.wait_alone(future, 1, PATIENCE)

    wait_for(lambda: future._state == "FINISHED")
    assert future._result != threading.get_ident()
    assert set(collected) <= {None}


class Whose:
    """Becomes the thread that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return threading.get_ident, ()


def test_a_wait_ends_with_its_time(desk: Desk, collected: list[Any]) -> None:
    stand_aside(desk)
    future = desk.enter(1)

    begin = time.monotonic()
    while time.monotonic() < begin + MOMENT:  # the collector may be back
        assert not desk.results.wait_alone(future, 1, MOMENT)

    desk.answer(1, "late")
    wait_for(lambda: future._state == "FINISHED" or desk.results.wait_alone(future, 1, MOMENT))
    assert future._result == "late"
    assert set(collected) <= {None}


def test_who_is_not_alone_does_not_wait(desk: Desk, collected: list[Any]) -> None:
    stand_aside(desk)
    first, second = desk.enter(1), desk.enter(2)

    assert not desk.results.wait_alone(first, 1, PATIENCE)

    desk.answer(2, "b")
    desk.answer(1, "a")
    wait_for(lambda: first._state == second._state == "FINISHED")
    assert set(collected) <= {None}


def test_a_withdrawn_call_is_not_waited_for(desk: Desk, collected: list[Any]) -> None:
    stand_aside(desk)
    future = desk.enter(1)
    del desk.pending[1]
    desk.enter(2)

    assert not desk.results.wait_alone(future, 1, PATIENCE)
    assert set(collected) <= {None}


def test_the_collector_sleeps_while_somebody_waits_for_long(
    desk: Desk, collected: list[Any]
) -> None:
    number = stand_aside(desk)
    answers = 0

    def answer_late(number: int) -> None:
        time.sleep(5 * MOMENT)
        desk.answer(number, number)

    before = desk.results.alone
    while desk.results.alone == before:  # the collector may be back for one
        number += 1
        future = desk.enter(number)
        late = threading.Thread(target=answer_late, args=(number,))
        late.start()
        desk.results.wait_alone(future, number, PATIENCE)
        late.join()
        wait_for(lambda future=future: future._state == "FINISHED")
        assert future._result == number
        answers += 1
        assert answers < 1000
    assert set(collected) <= {None}
