# SPDX-License-Identifier: Apache-2.0
"""Objects as messages: what arrives is what the standard library would have given."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import datetime
import decimal
import enum
import functools
import gc
import multiprocessing
import operator
import pickle
import struct
import subprocess
import sys
import threading
import weakref
from multiprocessing.reduction import AbstractReducer, ForkingPickler
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ipcbuf
import ipcbuf_mp
from ipcbuf_mp import _pickling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 60


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 7


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Node:
    value: Any
    rest: Any = None


class Text(str):
    __slots__ = ()


class Numbers(list[Any]):
    pass


@pytest.fixture
def channels() -> Iterator[list[Callable[[Any], Any]]]:
    """Two ways to send an object and get it back: a queue and a pipe."""
    q: Any = ipcbuf_mp.Queue()
    reader, writer = ipcbuf_mp.Pipe(duplex=False)

    def through_queue(obj: Any) -> Any:
        q.put(obj)
        return q.get(timeout=PATIENCE)

    def through_pipe(obj: Any) -> Any:
        writer.send(obj)
        return reader.recv()

    with reader, writer:
        yield [through_queue, through_pipe]
    q.close()


def by_stdlib(obj: Any) -> Any:
    # The default protocol before Python 3.14: by 5 a read-only array comes out read-only.
    return pickle.loads(ForkingPickler.dumps(obj, 4))


def same(a: Any, b: Any, seen: dict[int, int] | None = None) -> bool:
    """Whether two objects have the same types, values and structure of shared parts."""
    if type(a) is not type(b):
        return False
    seen = {} if seen is None else seen
    if isinstance(a, (list, dict, set, bytearray, collections.deque, Node, np.ndarray)):
        if id(a) in seen:
            return seen[id(a)] == id(b)
        seen[id(a)] = id(b)
    match a:
        case float():
            return struct.pack("d", a) == struct.pack("d", b)
        case complex():
            return struct.pack("dd", a.real, a.imag) == struct.pack("dd", b.real, b.imag)
        case dict():
            return len(a) == len(b) and all(
                same(x, y, seen) for x, y in zip(a.items(), b.items(), strict=True)
            )
        case list() | tuple() | collections.deque():
            return len(a) == len(b) and all(same(x, y, seen) for x, y in zip(a, b, strict=True))
        case set() | frozenset():
            kinds_a, kinds_b = (collections.Counter((type(x), x) for x in s) for s in (a, b))
            return kinds_a == kinds_b
        case np.ndarray():
            if (a.flags.writeable, a.flags.f_contiguous) != (
                b.flags.writeable,
                b.flags.f_contiguous,
            ):
                return False
            # The byte order is kept here, but not by the pickle that the standard library uses.
            a, b = (array.astype(array.dtype.newbyteorder("=")) for array in (a, b))
            return (a.dtype, a.shape) == (b.dtype, b.shape) and (
                all(same(x, y, seen) for x, y in zip(a.ravel(), b.ravel(), strict=True))
                if a.dtype.hasobject
                else a.tobytes() == b.tobytes()
            )
        case Node():
            return same(a.value, b.value, seen) and same(a.rest, b.rest, seen)
        case decimal.Decimal():
            return bool(a.as_tuple() == b.as_tuple())
    return bool(a == b)


# --- any object -----------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**64), 2**64),
    st.sampled_from([2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 255, 256, -1]),
    st.floats(),
    st.text(),
    st.text(st.characters(codec=None), max_size=3),  # lone surrogates, too
    st.binary(),
    st.binary(min_size=3000, max_size=9000),
    st.complex_numbers(),
    st.builds(bytearray, st.binary()),
    st.decimals(),
    st.fractions(),
    st.datetimes(timezones=st.just(datetime.UTC)),
    st.timedeltas(),
    st.builds(range, st.integers(-99, 99), st.integers(-99, 99)),
    st.sampled_from([Colour.RED, Level.HIGH, ..., NotImplemented, int, len, operator.add]),
    st.builds(Text, st.text()),
)
hashables = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary())
arrays = hnp.arrays(
    dtype=st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes(max_size=2), hnp.unicode_string_dtypes()),
    shape=hnp.array_shapes(min_dims=0, min_side=0, max_side=5),
)


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(children),
        st.tuples(children, children),
        st.lists(children).map(tuple),
        st.dictionaries(hashables, children),
        st.sets(hashables),
        st.frozensets(hashables),
        st.builds(Point, children, children),
        st.builds(Node, children, children),
        st.builds(Numbers, st.lists(children)),
        st.builds(collections.deque, st.lists(children)),
        st.dictionaries(hashables, children).map(collections.OrderedDict),
        children.map(lambda child: [child, child, (child, {1: child})]),  # shared parts
    )


anything = st.recursive(scalars | arrays, containers, max_leaves=12)


class TestAnyObject:
    @hypothesis.settings(
        deadline=None,
        max_examples=300,
        suppress_health_check=[
            hypothesis.HealthCheck.function_scoped_fixture,
            hypothesis.HealthCheck.too_slow,
        ],
    )
    @hypothesis.given(obj=anything)
    def test_arrives_as_the_standard_library_would_give_it(
        self, channels: list[Callable[[Any], Any]], obj: Any
    ) -> None:
        expected = by_stdlib(obj)
        for through in channels:
            assert same(through(obj), expected)

    @pytest.mark.parametrize(
        "obj",
        [
            True,
            -0.0,
            float("nan"),
            2**63,
            "\ud800",
            "\0",
            Level.HIGH,
            Text("text"),
            Numbers([1]),
            [[]],
            ((),),
            {(): {}},
            {"k": [(1, 2.5, b"3", "4", None, True)]},
            list(range(10_000)),
            {number: str(number) for number in range(3000)},
            "é" * 100_000,
            2**64,
            -(2**63) - 1,
            -(2**200),
            3**1000,
            3**8000,
            complex(-0.0, float("inf")),
            bytearray(b"xyz"),
            bytearray(100_000),
            {1, "a", (2, b"3"), None, frozenset({4})},
            frozenset(),
            {frozenset(), frozenset({frozenset({-(2**70)})})},
            [set(range(2000)), {1.5j}],
            ValueError("message", 3),
        ],
        ids=lambda obj: type(obj).__name__,
    )
    def test_selected(self, channels: list[Callable[[Any], Any]], obj: Any) -> None:
        expected = by_stdlib(obj)
        for through in channels:
            got = through(obj)
            if isinstance(obj, Exception):
                assert (type(got), got.args) == (type(expected), expected.args)
            else:
                assert same(got, expected)

    def test_shared_parts_stay_shared(self, channels: list[Callable[[Any], Any]]) -> None:
        part: list[Any] = [1]
        whole = [part, part, (part,), {"key": part}]
        for through in channels:
            got = through(whole)

            assert got[0] is got[1] is got[2][0] is got[3]["key"]
            for shared in (bytearray(b"x"), {1}, frozenset({2, 3}), b"bytes", "text"):
                got = through([shared, [shared]])
                assert got[0] is got[1][0]

    def test_an_object_may_contain_itself(self, channels: list[Callable[[Any], Any]]) -> None:
        ring: list[Any] = []
        ring.append(ring)
        table: dict[str, Any] = {}
        table["self"] = (table,)
        for through in channels:
            assert (got := through(ring))[0] is got
            assert (found := through(table))["self"][0] is found

    def test_a_deep_object_raises_as_pickle_does(
        self, channels: list[Callable[[Any], Any]]
    ) -> None:
        deep: Any = None
        for _ in range(100_000):
            deep = [deep]
        for through in channels:
            with pytest.raises(RecursionError):
                through(deep)
            assert through([[None]]) == [[None]]
        while deep is not None:  # or its destructor recurses as deeply
            deep = deep[0]


# --- reducers --------------------------------------------------------------------------------------


class Plain:
    def __init__(self, value: object = None) -> None:
        self.value = value

    def get(self) -> object:
        return self.value


class TestReducers:
    @pytest.fixture(autouse=True)
    def _restored(self) -> Iterator[None]:
        forking = dict(ForkingPickler._extra_reducers)  # type: ignore[attr-defined]
        general = dict(copyreg.dispatch_table)
        yield
        for table, before in (
            (ForkingPickler._extra_reducers, forking),  # type: ignore[attr-defined]
            (copyreg.dispatch_table, general),
        ):
            table.clear()
            table.update(before)

    def test_a_registered_one_counts_at_once(self, channels: list[Callable[[Any], Any]]) -> None:
        for through in channels:
            assert type(through(Plain())) is Plain
            ForkingPickler.register(Plain, lambda _obj: (str, ("first",)))
            assert through(Plain()) == "first"
            ForkingPickler.register(Plain, lambda _obj: (str, ("second",)))
            assert through([Plain()]) == ["second"]
            del ForkingPickler._extra_reducers[Plain]  # type: ignore[attr-defined]

    def test_one_of_copyreg_counts_and_ours_precede_it(
        self, channels: list[Callable[[Any], Any]]
    ) -> None:
        copyreg.pickle(Plain, lambda _obj: (str, ("by copyreg",)))  # type: ignore[arg-type,return-value]
        assert channels[0](Plain()) == "by copyreg"
        ForkingPickler.register(Plain, lambda _obj: (str, ("by multiprocessing",)))
        assert channels[0](Plain()) == "by multiprocessing"

    def test_one_for_arrays_precedes_ours(self, channels: list[Callable[[Any], Any]]) -> None:
        ForkingPickler.register(np.ndarray, lambda array: (len, (array.tolist(),)))

        assert channels[0](np.zeros(5000)) == 5000

    def test_those_of_multiprocessing_work(self, channels: list[Callable[[Any], Any]]) -> None:
        for obj in (Plain("bound").get, list.append, functools.partial(int, "11", base=2)):
            got = channels[0](obj)
            assert type(got) is type(obj)
        assert channels[0](functools.partial(int, "11", base=2))() == 3

    def test_a_reducer_override_counts(
        self, channels: list[Callable[[Any], Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def reducer_override(_pickler: object, obj: object) -> Any:
            return (str, ("overridden",)) if type(obj) is Plain else NotImplemented

        monkeypatch.setattr(ForkingPickler, "reducer_override", reducer_override, raising=False)

        for through in channels:
            assert through([Plain(), 2**70, np.int64(3)]) == ["overridden", 2**70, 3]

    def test_a_pickler_of_the_program_counts(self, channels: list[Callable[[Any], Any]]) -> None:
        class Reversed(ForkingPickler):
            @classmethod
            def dumps(cls, obj: Any, protocol: int | None = None) -> Any:
                return pickle.dumps(obj, protocol)[::-1]

            @staticmethod
            def loads(data: Any, **_options: Any) -> Any:  # type: ignore[override]
                return pickle.loads(bytes(data)[::-1])

        class Reducer(AbstractReducer):
            ForkingPickler = Reversed

        context: Any = multiprocessing.get_context()
        before = context.reducer
        context.reducer = Reducer()
        try:
            for through in channels:
                assert through(datetime.date(2026, 1, 2)) == datetime.date(2026, 1, 2)
                assert through([1, "text", b"x" * 10_000]) == [1, "text", b"x" * 10_000]
            payload, buffers = _pickling.dumps(datetime.date(2026, 1, 2))
            assert (payload[:1], buffers) == (b".", None)
        finally:
            context.reducer = before

    def test_a_reducer_may_send_something_itself(
        self, channels: list[Callable[[Any], Any]]
    ) -> None:
        through = channels[0]

        def reduce(obj: Plain) -> Any:
            return Plain, (through(obj.value),)

        ForkingPickler.register(Plain, reduce)

        got = through([Plain([Plain({1}), np.arange(2000)]), "rest"])

        assert got[1] == "rest"
        inner = got[0].value
        assert inner[0].value == {1}
        np.testing.assert_array_equal(inner[1], np.arange(2000))

    def test_threads_do_not_disturb_each_other(self) -> None:
        failures: list[object] = []

        def work(number: int) -> None:
            for count in range(300):
                obj = Plain([number, count, np.full(1000, number)])
                payload, buffers = _pickling.dumps(obj)
                got = _pickling.loads(payload, buffers or ()).value
                if got[:2] != [number, count] or not (got[2] == number).all():
                    failures.append(got)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)

        assert not failures


# --- refusals ---------------------------------------------------------------------------------------


class Refuses:
    def __reduce__(self) -> Any:
        raise TypeError("this is why")


class TestRefusals:
    def test_the_error_is_the_one_of_pickle(self, channels: list[Callable[[Any], Any]]) -> None:
        for through in channels:
            with pytest.raises(TypeError, match="this is why"):
                through([1, Refuses()])
            with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
                through(threading.Lock())
            assert through([1, {2}]) == [1, {2}]

    def test_the_second_error_is_not_shown(self, channels: list[Callable[[Any], Any]]) -> None:
        class Changes:
            reasons: ClassVar[list[str]] = ["that of pickle", "that of cloudpickle"]

            def __reduce__(self) -> Any:
                raise TypeError(self.reasons.pop(0))

        with pytest.raises(TypeError, match="that of pickle") as caught:
            channels[0](Changes())
        assert Changes.reasons == []
        assert caught.value.__context__ is None

    def test_half_an_object_is_forgotten(self, channels: list[Callable[[Any], Any]]) -> None:
        first = Plain()
        for _ in range(3):
            with pytest.raises(TypeError):
                channels[0]([first, Refuses()])

        assert type(channels[0](first)) is Plain

    def test_any_other_error_of_a_reducer_passes(
        self, channels: list[Callable[[Any], Any]]
    ) -> None:
        class Interrupts:
            def __reduce__(self) -> Any:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            channels[0](Interrupts())

    def test_what_only_cloudpickle_takes(self, channels: list[Callable[[Any], Any]]) -> None:
        number = 20
        array = np.arange(5000)

        class Local:
            def value(self) -> int:
                return number

        for through in channels:
            assert through(lambda x: x + number)(1) == 21
            assert through(Local)().value() == 20
            function, got = through((lambda: number, array))
            assert function() == 20
            np.testing.assert_array_equal(got, array)
            assert got.flags.writeable


# --- memory -----------------------------------------------------------------------------------------


class TestMemory:
    def test_nothing_of_a_message_is_kept(self, channels: list[Callable[[Any], Any]]) -> None:
        for through in channels:
            obj = Plain([Plain()])
            gone = weakref.ref(obj)
            got = through(obj)
            del obj
            assert gone() is None
            gone = weakref.ref(got)
            del got
            assert gone() is None

    def test_a_refused_message_is_not_kept(self, channels: list[Callable[[Any], Any]]) -> None:
        obj = Plain(Refuses())
        gone = weakref.ref(obj)
        with pytest.raises(TypeError):
            channels[0](obj)
        del obj
        gc.collect()

        assert gone() is None


# --- arrays and other buffers -----------------------------------------------------------------------


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


ARRAYS = {
    "small": np.arange(5),
    "large": np.arange(100_000),
    "zero-d": np.array(5.0),
    "empty": np.zeros((0, 3)),
    "matrix": np.arange(60_000.0).reshape(200, 300),
    "fortran": np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
    "sliced": np.arange(60_000.0).reshape(200, 300)[::2, ::3],
    "transposed": np.arange(6000).reshape(10, 20, 30).transpose(1, 0, 2),
    "small read-only": read_only(np.arange(5)),
    "large read-only": read_only(np.arange(100_000)),
    "from bytes": np.frombuffer(b"x" * 10_000, np.uint8),
    "broadcast": np.broadcast_to(np.arange(1000), (50, 1000)),
    "big-endian": np.arange(5000).astype(">i4"),
    "bool": np.ones(5000, bool),
    "text": np.array(["é", "xyz"] * 1000),
    "objects": np.array([1, "two", None, [3]] * 100, object),
    "times": np.arange(5000).astype("M8[ms]"),
    "records": np.zeros(2000, [("a", "i4"), ("b", "f8", (2,))]),
    "records with times": np.zeros(2000, [("a", "i4"), ("b", "M8[s]")]),
    "metadata": np.zeros(2000, np.dtype("f8", metadata={"unit": "m"})),
    "half": np.ones(5000, "f2"),
    "long double": np.ones(5000, "g"),
    "matrix class": np.ones((100, 100)).view(np.matrix),
    "masked": np.ma.masked_array(np.arange(5000), np.arange(5000) % 2 == 0),
}


class TestArrays:
    @pytest.mark.parametrize("name", ARRAYS)
    @pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # np.matrix
    def test_arrive_as_they_were_and_writable(
        self, channels: list[Callable[[Any], Any]], name: str
    ) -> None:
        array = ARRAYS[name]
        expected = by_stdlib(array)
        for through in channels:
            got = through(array)

            assert same(got, expected)
            assert got.dtype.metadata == expected.dtype.metadata
            assert got.flags.writeable
            assert got.dtype == array.dtype

    @pytest.mark.parametrize("name", ["large", "matrix", "fortran", "large read-only", "times"])
    def test_large_ones_are_copied_once(self, name: str) -> None:
        array = ARRAYS[name]
        payload, buffers = _pickling.dumps({"key": array})

        assert len(payload) < 300
        assert buffers is not None
        assert [buffer.nbytes for buffer in buffers] == [array.nbytes]
        (buffer,) = buffers
        assert np.shares_memory(np.frombuffer(buffer, np.uint8), array)

    def test_the_receiver_copies_nothing(self) -> None:
        array = np.arange(10_000)
        payload, _ = _pickling.dumps(array)
        block = bytearray(array.tobytes())
        got = _pickling.loads(payload, (block,))
        got[0] = 77

        assert np.shares_memory(got, np.frombuffer(block, np.uint8))
        assert block[0] == 77

    def test_small_buffers_stay_in_the_pickle(self) -> None:
        small = np.zeros(_pickling.LARGE - 1, np.uint8)
        large = np.zeros(_pickling.LARGE, np.uint8)

        assert _pickling.dumps(small)[1] is None
        assert len(_pickling.dumps(large)[1] or ()) == 1

    def test_a_message_has_at_most_so_many_buffers(
        self, channels: list[Callable[[Any], Any]]
    ) -> None:
        arrays = [np.full(_pickling.LARGE, number, np.uint8) for number in range(100)]
        _, buffers = _pickling.dumps(arrays)
        assert len(buffers or ()) == _pickling.MOST_BUFFERS

        for got, array in zip(channels[0](arrays), arrays, strict=True):
            np.testing.assert_array_equal(got, array)
            assert got.flags.writeable

    @pytest.mark.parametrize("code", [*"?bBhHiIlLqQefdgFDG", ">i4", "M8[s]"])
    @pytest.mark.parametrize("order", "CF")
    @pytest.mark.parametrize("rows", [0, 3, 500])
    def test_within_containers_they_are_as_by_the_standard_library(
        self, channels: list[Callable[[Any], Any]], code: str, order: Any, rows: int
    ) -> None:
        array = np.arange(rows * 4).reshape(rows, 4).astype(code, order=order)
        obj = {"one": array, "more": [(1, array[:, :2]), (array.copy(order), array[:2].copy())]}
        expected = by_stdlib(obj)
        for through in channels:
            assert same(through(obj), expected)

    def test_in_tasks_and_leased_messages_too(self) -> None:
        obj = [np.arange(3), (np.arange(5000.0), np.zeros((40, 50), order="F"))]
        segment = ipcbuf.Segment(max_size=64 << 20)
        sender, receiver = segment.channel(lease=True)
        sender.send_object(obj)
        leased = receiver.recv_leased(PATIENCE)
        assert same(leased.load(), obj)
        assert same(leased.load(), obj)  # a copy each time
        leased.done()
        sender, receiver = segment.channel()
        sender.send_task(obj, 7)
        got = receiver.recv_task(PATIENCE).load()

        assert same(got, obj)
        assert got[1][0].flags.writeable

    def test_the_same_array_twice_arrives_as_one(
        self, channels: list[Callable[[Any], Any]]
    ) -> None:
        array = np.zeros(5000)
        for through in channels:
            one, other = through([array, array])

            assert one is other

    def test_parts_of_a_received_array_keep_its_memory(
        self, channels: list[Callable[[Any], Any]]
    ) -> None:
        through = channels[0]
        part = through(np.arange(50_000))[10:20]
        for value in range(20):
            through(np.full(50_000, value))

        assert part.tolist() == list(range(10, 20))

    def test_received_arrays_can_be_sent_on(self, channels: list[Callable[[Any], Any]]) -> None:
        array = np.arange(50_000)
        for through in channels:
            np.testing.assert_array_equal(through(through(array)), array)

    def test_recv_bytes_gives_a_pickle_of_everything(self) -> None:
        reader, writer = ipcbuf_mp.Pipe(duplex=False)
        with reader, writer:
            for obj in (1, [2, "x"], {"array": np.arange(2000)}):
                writer.send(obj)
                assert same(pickle.loads(reader.recv_bytes()), by_stdlib(obj))


class TestNative:
    def test_builtins_are_not_pickled(self) -> None:
        program = """if True:
            import ipcbuf
            sender, receiver = ipcbuf.Segment().channel()
            def refuse(*args):
                raise AssertionError(args)
            ipcbuf.set_object_codec(refuse, refuse, refuse)
            for obj in (None, True, 5, -5**100, 2.5, 1j, b"bytes", bytearray(b"array"), "text",
                        (1, [2, {3: {4, 5}}], frozenset({6}), bytearray())):
                sender.send_object(obj)
                got = receiver.recv_object()
                assert got == obj and type(got) is type(obj), obj
            """

        subprocess.run([sys.executable, "-P", "-c", program], check=True, timeout=PATIENCE)


class TestImports:
    def test_nothing_slow_is_imported_for_plain_objects(self) -> None:
        program = """if True:
            import sys
            import ipcbuf_mp
            q = ipcbuf_mp.Queue()
            q.put([1, {2}, object])
            assert q.get() == [1, {2}, object]
            assert not {"numpy", "cloudpickle", "concurrent.futures.process"} & set(sys.modules)
            q.put(lambda: 5)
            assert "cloudpickle" in sys.modules
            assert q.get()() == 5
            """

        subprocess.run([sys.executable, "-P", "-c", program], check=True, timeout=PATIENCE)

    def test_numpy_may_be_imported_after_the_first_message(self) -> None:
        program = """if True:
            import ipcbuf_mp
            q = ipcbuf_mp.Queue()
            q.put(object)
            q.get()
            import numpy
            array = numpy.arange(5000)
            array.flags.writeable = False
            q.put(array)
            assert q.get().flags.writeable
            """

        subprocess.run([sys.executable, "-P", "-c", program], check=True, timeout=PATIENCE)
