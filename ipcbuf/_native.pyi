"""The compiled part of ipcbuf. Use the names that `ipcbuf` exports."""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, overload

from .info import ChannelInfo
from typing_extensions import Buffer



class Segment:
    """One mapped region of shared memory."""

    @overload
    def __init__(self, max_size: int = 0, fd: int = -1) -> None: ...

    @overload
    def __init__(self, name: str, max_size: int, create: bool, exist_ok: bool, allow_disk: bool) -> None: ...

    def diagnose(self) -> list[dict[str, Any]]:
        """
        Say for each channel who holds its ends and who waits there, for people to read.

        Taken without a lock while others work, so neighbouring numbers may be of different
        moments. A dictionary has `id`, `key` (int, str or None), `type`, `shared`, `bell`,
        `messages`, `bytes`, `sent_count` and `received_count` (ever, modulo 2**32), `max_items`,
        `max_bytes` (0: no limit), and `sender` and `receiver`:
        dictionaries of `state` ('open', 'closed', 'dead', 'awaited'), `owner` (the pid of the
        only user of an exclusive end), `inside` (the pid that has the lock of a shared one),
        `holders` (list of `kind`, `pid`, `count`), `sleeper` (the pid that went to sleep there
        last) and `sleeps_for` (seconds), `last_pid` (who died or closed there last) and
        `left_ago` (seconds). What is not known is None.
        """

    @property
    def fd(self) -> int:
        """
        Descriptor of the segment's memory, this process's own.

        Raises:
            SegmentLost: Somebody in this process closed it.
        """

    @property
    def uuid(self) -> bytes:
        """16 bytes that name the segment."""

    @property
    def max_size(self) -> int:
        """Bytes the segment may grow to."""

    @property
    def committed(self) -> int:
        """Bytes backed by memory now."""

    @property
    def token(self) -> int:
        """Names this process among the users of the segment."""

    def close_native(self) -> None:
        """As `ipcbuf.Segment.close`."""

    @property
    def closed(self) -> bool:
        """True once this object was closed here."""

    def allocate(self, nbytes: int, /) -> Record:
        """
        Return a record of *nbytes* bytes, uninitialised.

        Raises:
            HeapExhausted: No room, with the numbers.
            RecordTooLarge: It could never fit.
        """

    def channel(self, *, max_items: int = 0, max_bytes: int = 0, shared: bool = False, bell: str = 'futex', lease: bool = False) -> tuple[Sender, Receiver]:
        """
        Make a channel and return its two ends.

        Args:
            max_items: Messages the channel holds at most; 0 means any number.
            max_bytes: Bytes of messages it holds at most, or one larger message; 0: no limit.
            shared: Any number of processes and threads may use each end; else one.
            bell: What a waiting receiver sleeps on.
            lease: What a receiver had taken and not yet finished when it died is delivered again
                (`Receiver.recv_leased`). Such ends are shared.
        """

    def open_sender(self, channel_id: int, transit: int = 0, /) -> Sender:
        """Open the sending end of a channel that came with a handle."""

    def open_receiver(self, channel_id: int, transit: int = 0, /) -> Receiver:
        """Open the receiving end of a channel that came with a handle."""

    def cancel_task(self, offset: int, task_id: int, /) -> bool:
        """
        Cancel a task that nobody has started. False: it runs, is done, or is gone.
        """

    def has_task(self, offset: int, task_id: int, /) -> bool:
        """
        Say whether a task still waits or runs. False: its memory was freed, by whoever ran it after its result was sent, or because he died and was buried by `reap`.
        """

    def reserve_parcels(self) -> int:
        """
        Return a seat for what a process that is about to be started is sent; 0 if none is left.

        What is in it, by `Sender.transit` and its like, goes when that process dies.
        """

    def address_parcels(self, parcels: int, pid: int, /) -> None:
        """Say which process that is. Until then it is this one."""

    def drop_parcels(self, parcels: int, /) -> None:
        """Give up what is in it: nothing was started."""

    def reap(self) -> int:
        """Bury the processes that died; return how many there were."""

    def processes(self) -> list[dict[str, Any]]:
        """
        Return a row for each attached process: slot, token, pid, state, same_namespace, dead.

        `dead` is proven; such a process waits to be buried by `reap`.
        """

    def stats(self) -> dict[str, Any]:
        """Return counts and bytes by state."""

    def trim(self) -> int:
        """
        Give the memory of all free runs of 2 MiB and more back to the system now.

        By itself a segment gives back what nobody needed for a second, and keeps 32 MiB, because
        memory that has to be reserved again is slow.

        Returns:
            Bytes that were given back.
        """

    def fsck(self) -> list[str]:
        """
        Walk over everything and return what contradicts; [] if sound.

        Exact only while nobody uses the segment.
        """

    def sender(self, key: int | str, /, *, max_items: int | None = None, max_bytes: int | None = None, shared: bool | None = None, lease: bool | None = None) -> Sender:
        """
        Return the sending end of the channel of that key, made if need be.

        The first comer makes the channel, later ones join it. Of an exclusive channel (the default) each end has one user at a time; another may join once that one has closed it, left or died. Until somebody has joined at the other end, this one waits for it. The channel goes, with what is in it, when its last user at either end is gone.

        Args:
            key: An int of 64 bits, or a str of 1 to 60 bytes of UTF-8.
            max_items: Messages the channel holds at most, 0: any number. None: as others say.
            max_bytes: Bytes of messages it holds at most, or one larger message; 0: no limit.
            shared: Any number of processes and threads may use each end. The first comer decides.
            lease: What a receiver had taken and not yet finished when it died is delivered again (`Receiver.recv_leased`). Such ends are shared. The first comer decides.

        Raises:
            ValueError: The channel has another type or limit, `shared` or `lease`.
            BusyError: The end is exclusive and a living process has it.
            HeapExhausted: The segment has no room, with the numbers.
        """

    def receiver(self, key: int | str, /, *, max_items: int | None = None, max_bytes: int | None = None, shared: bool | None = None, lease: bool | None = None) -> Receiver:
        """
        Return the receiving end of the channel of that key, made if need be.

        The first comer makes the channel, later ones join it. Of an exclusive channel (the default) each end has one user at a time; another may join once that one has closed it, left or died. Until somebody has joined at the other end, this one waits for it. The channel goes, with what is in it, when its last user at either end is gone.

        Args:
            key: An int of 64 bits, or a str of 1 to 60 bytes of UTF-8.
            max_items: Messages the channel holds at most, 0: any number. None: as others say.
            max_bytes: Bytes of messages it holds at most, or one larger message; 0: no limit.
            shared: Any number of processes and threads may use each end. The first comer decides.
            lease: What a receiver had taken and not yet finished when it died is delivered again (`Receiver.recv_leased`). Such ends are shared. The first comer decides.

        Raises:
            ValueError: The channel has another type or limit, `shared` or `lease`.
            BusyError: The end is exclusive and a living process has it.
            HeapExhausted: The segment has no room, with the numbers.
        """

    def has_channel(self, key: int | str, /) -> bool:
        """
        Say whether a living process uses a channel, static segment or atomic of that key.
        """

    def wait_for_channel(self, key: int | str, /, timeout: float | None = None) -> bool:
        """
        Wait up to *timeout* seconds until there is a channel of that key.

        Returns:
            Whether there is one.
        """

    def channels(self) -> list[ChannelInfo]:
        """
        Return what there is, anonymous channels included, without the users that died.

        Each is a snapshot of its own; others go on meanwhile.
        """

    def has_channels(self) -> bool:
        """Say whether the segment has any channel, anonymous ones included."""

    def remove_channel(self, key: int | str, /) -> bool:
        """
        Free a key: what comes next under it is new.

        Senders of the old channel get `BrokenChannel` at their next call, receivers what is still in it and then `EndOfChannel`. A static segment or an atomic goes on for those who have it. The memory is freed when the last of them has let go.

        Returns:
            Whether there was one.
        """

    def remove_channels(self) -> int:
        """`remove_channel` for every key; return how many there were."""

    def static(self, key: int | str, nbytes: int, /, init: Callable[[memoryview], object] | None = None) -> Static:
        """
        Return the memory of that key, made of *nbytes* zeros if need be.

        Args:
            key: An int of 64 bits, or a str of 1 to 60 bytes of UTF-8.
            nbytes: Its length; all who share it must say the same.
            init: Runs once, however many come at the same time; the others wait for it. If its process dies or it raises, the memory is zeroed and the next comer's runs. Who comes without one gets the memory as it is, but waits for one that runs.

        Raises:
            ValueError: The key has another length or type.
            HeapExhausted: The segment has no room, with the numbers.
        """

    def open_static(self, channel_id: int, transit: int = 0, /) -> Static:
        """Open a static segment that came with a handle."""

    def atomic(self, key: int | str, /, value: int = 0) -> Atomic:
        """
        Return the 64-bit number of that key; who makes it sets it to *value*.

        Raises:
            ValueError: The key is of another type.
            OverflowError: The value has more than 64 bits.
        """

    def open_atomic(self, channel_id: int, transit: int = 0, /) -> Atomic:
        """Open an atomic that came with a handle."""

    @property
    def name(self) -> str | None:
        """The name it was opened by in this process, None if by none."""

    def unlink_native(self) -> None:
        """As `ipcbuf.Segment.unlink`."""

    def retire_native(self) -> None:
        """Remove the name if nobody else uses the segment."""

class Static:
    """
    Memory with a key that any number of processes share: a writable buffer.

    `Segment.static` makes it. Use it through `memoryview` or `numpy.frombuffer`. It is freed when the last process that has it closes it, drops it or dies.
    """

    @property
    def nbytes(self) -> int:
        """Length in bytes, exactly as asked."""

    @property
    def key(self) -> int | str: ...

    @property
    def closed(self) -> bool: ...

    @property
    def channel_id(self) -> int: ...

    @property
    def segment(self) -> Segment: ...

    def __len__(self) -> int: ...

    def transit(self, parcels: int = 0, /) -> int:
        """
        Keep the memory alive for a handle on its way, as `Sender.transit`; `open_static` takes what this returns.
        """

    def close(self) -> None:
        """
        Let go of the memory. Twice is allowed.

        Raises:
            BufferError: Views of it still exist.
        """

    def __enter__(self) -> Static: ...

    def __exit__(self, *args: object) -> None: ...

    def __buffer__(self, flags: int, /) -> memoryview: ...

class Atomic:
    """
    A signed number of 64 bits with a key, which any number of processes change and wait for.

    `Segment.atomic` makes it. Every method is one atomic step, in one order for all. What goes over the end of 64 bits wraps around; arguments beyond them are an OverflowError. As in C++20, changing the value wakes nobody; `notify` does. It is freed when the last process that has it closes it, drops it or dies.
    """

    def load(self) -> int:
        """Return the value."""

    def store(self, value: int, /) -> None:
        """Set the value."""

    def add(self, value: int, /) -> int:
        """Add to the value, wrapping around; return what it was before."""

    def exchange(self, value: int, /) -> int:
        """Set the value; return what it was before."""

    def compare_exchange(self, expected: int, desired: int, /) -> bool:
        """Set the value to *desired* if it is *expected*; say whether it was."""

    def wait(self, while_equal: int, /, timeout: float | None = None) -> int:
        """
        Sleep while the value is *while_equal*, up to *timeout* seconds.

        It looks when it begins, when it is notified, and at the end of each slice of the wait (20 ms, after a second 200 ms).

        Returns:
            The value; if it is *while_equal*, the time was up.
        """

    def notify(self, n: int | None = None) -> None:
        """Wake up to *n* waiters, None: all, to look at the value again."""

    @property
    def key(self) -> int | str: ...

    @property
    def closed(self) -> bool: ...

    @property
    def channel_id(self) -> int: ...

    @property
    def segment(self) -> Segment: ...

    def transit(self, parcels: int = 0, /) -> int:
        """
        Keep the cell alive for a handle on its way, as `Sender.transit`; `open_atomic` takes what this returns.
        """

    def close(self) -> None:
        """
        Let go of the cell. Waits that are under way here go on. Twice is allowed.
        """

    def __enter__(self) -> Atomic: ...

    def __exit__(self, *args: object) -> None: ...

def unlink_segment(name: str) -> None: ...

def list_segments() -> list[tuple[str, int, int, tuple[int, ...], bool, str | None]]: ...

def collect_segments(damaged_too: bool, /) -> list[str]: ...

class Record:
    """
    A writable block of the segment's heap, with the buffer protocol.

    `Segment.allocate` and `Receiver.recv_view` make it. Its memory is freed with the last reference to it or to any view of it.
    """

    @property
    def nbytes(self) -> int:
        """Length in bytes, exactly as allocated or sent."""

    @property
    def segment(self) -> Segment:
        """The segment whose heap it is in."""

    @property
    def address(self) -> int:
        """Where its first byte is in this process."""

    @property
    def shareable(self) -> bool:
        """Whether other processes can have its memory: not of a small message's."""

    def __len__(self) -> int: ...

    def release(self) -> None:
        """
        Free the memory now.

        Raises:
            BufferError: Views of the record still exist.
        """

    def __buffer__(self, flags: int, /) -> memoryview: ...

class Ticket:
    """
    Keeps the memory of a record alive on its way to another process.

    As a buffer beside a message of ours it goes with the message. Its bytes in any other pickle can be opened once, while the process that made it lives.
    """

    def __init__(self, arg: Record, /) -> None: ...

    @property
    def beside(self) -> bool:
        """True: it goes beside a message, not as bytes."""

    @beside.setter
    def beside(self, arg: bool, /) -> None: ...

    def __buffer__(self, flags: int, /) -> memoryview: ...

class Moving:
    """A record that is to be sent without a copy."""

    def __init__(self, record: Record, /) -> None: ...

    @property
    def record(self) -> Record: ...

def open_ticket(segment: Segment, ticket: object, /) -> Record:
    """
    Return the record of a ticket that arrived, as a buffer of a message or as bytes.

    Raises:
        ClosedError: It was opened before, or its sender ended before it was.
    """

class Sender:
    """
    The sending end of a channel.

    `Segment.channel` makes it. An exclusive end (shared=False) belongs to the first process that uses it, one thread at a time. It ends with `close()`, with its last reference, or with the process.
    """

    def send(self, data: Buffer | Record | Moving, /, timeout: float | None = None) -> None:
        """
        Send bytes, or move a record, waiting up to *timeout* seconds for room.

        A record is sent without a copy and is released here; so is `ipcbuf.move(array)`, which
        stays readable here.

        Raises:
            BufferError: Views of the record still exist.
            ChannelFull: There was no room in time.
            BrokenChannel: Nobody is left who could receive.
            ClosedError: This end was closed here.
            BusyError: The end is exclusive and has another user.
            HeapExhausted: The segment has no room, with the numbers.
        """

    def send_object(self, obj: object, /, timeout: float | None = None) -> None:
        """Send an object, as `send`. What its pickling raises is raised here."""

    def asend(self, data: Buffer | Record, /, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """
        Send as `send`, for `await` in an asyncio event loop.

        Tasks of a loop are served in the order in which they came. A cancelled one has sent
        nothing. The data must not change until then.
        """

    def asend_object(self, obj: object, /, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Send an object as `send_object`, for `await`; see `asend`."""

    def send_task(self, obj: object, task_id: int, /) -> int:
        """
        Send an object as a task that can be cancelled until it is received.

        Returns:
            What `Segment.cancel_task` needs beside the task's id.
        """

    def pending(self) -> int:
        """Return how many messages are in the channel."""

    def fileno(self) -> int:
        """
        Return a descriptor that is readable while there is room, or nobody to receive.

        After a refused send, room means room for that message. Else as `Receiver.fileno`.
        """

    def has_room(self) -> bool:
        """Say whether a small message would find room now."""

    @property
    def receiver_count(self) -> int:
        """
        How many handles of the receiving end living processes have, those on their way included.
        """

    def has_receivers(self) -> bool:
        """Say whether a living process has the receiving end."""

    def transit(self, parcels: int = 0, /) -> int:
        """
        Keep the channel alive for a handle on its way, among *parcels* of `reserve_parcels` if it goes to a new process; `open_sender` takes what this returns.
        """

    def close(self) -> None:
        """
        Give the end up. The last one closes it for the receiver. Twice is allowed.
        """

    @property
    def closed(self) -> bool: ...

    @property
    def channel_id(self) -> int: ...

    @property
    def leased(self) -> bool: ...

    @property
    def shared(self) -> bool: ...

    @property
    def segment(self) -> Segment: ...

    @property
    def bell_fd(self) -> int:
        """The descriptor that rings the receiver, borrowed; -1 if there is none."""

    @bell_fd.setter
    def bell_fd(self, arg: int, /) -> None: ...

    def __enter__(self) -> Sender: ...

    def __exit__(self, *args: object) -> None: ...

class Receiver:
    """
    The receiving end of a channel.

    `Segment.channel` makes it. An exclusive end (shared=False) belongs to the first process that uses it, one thread at a time. Iterating, with `for` or `async for`, yields bytes until the channel ends.
    """

    def recv(self, timeout: float | None = None) -> bytes:
        """
        Return the oldest message as bytes, waiting up to *timeout* seconds.

        The bytes are a copy, so they outlive the channel; `recv_view()` copies nothing.

        Raises:
            ChannelEmpty: Nothing came in time.
            EndOfChannel: Every sender is gone and everything was received.
            BrokenChannel: The sender died. What it had published was returned first.
        """

    def recv_view(self, timeout: float | None = None) -> Record:
        """Return the oldest message as a record that owns its memory, as `recv`."""

    def recv_bytes(self) -> bytes:
        """Return the oldest message as bytes; of an object, its pickle."""

    def recv_object(self, timeout: float | None = None) -> Any:
        """
        Return the oldest message as an object, as `recv`.

        What its unpickling raises is raised here; the message is gone then.
        """

    def recv_leased(self, timeout: float | None = None) -> Leased:
        """
        Take the oldest message of a leased channel until it is done, as `recv`.

        If this process dies first, the message is delivered again. `EndOfChannel` is raised only when no other process has a message it may not finish.

        Raises:
            ValueError: The channel was not made with lease=True.
        """

    def arecv(self, timeout: float | None = None) -> Coroutine[Any, Any, bytes]:
        """
        Return the oldest message as `recv`, for `await` in an asyncio event loop.

        Tasks of a loop are served in the order in which they came. A cancelled one has taken
        no message. The loop watches `fileno()`, so do not add a reader for it beside.
        """

    def arecv_view(self, timeout: float | None = None) -> Coroutine[Any, Any, Record]:
        """Return the oldest message as `recv_view`, for `await`; see `arecv`."""

    def arecv_object(self, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        """Return the oldest message as `recv_object`, for `await`; see `arecv`."""

    def arecv_leased(self, timeout: float | None = None) -> Coroutine[Any, Any, Leased]:
        """Take the oldest message as `recv_leased`, for `await`; see `arecv`."""

    def recv_task(self, timeout: float | None = None) -> Task:
        """Start and return the oldest task that was not cancelled."""

    def poll(self, timeout: float | None = 0.0) -> bool:
        """
        Say whether a message, or the end, is there within *timeout* seconds. Takes nothing.
        """

    def pending(self) -> int:
        """Return how many messages are in the channel."""

    def has_data(self) -> bool:
        """Say whether a message is in the channel."""

    @property
    def sender_count(self) -> int:
        """
        How many handles of the sending end living processes have, those on their way included.
        """

    def has_senders(self) -> bool:
        """Say whether a living process has the sending end."""

    def fileno(self) -> int:
        """
        Return a descriptor that is readable while a message, or the end, is there.

        It is for select, poll and event loops, borrowed, and stays valid until the object
        goes, in a forked child too. It may read ready although another process was faster,
        so receive with `timeout=0` behind it. A channel that has no descriptor of its own
        gets one, and this process a thread that makes it readable.

        Raises:
            ClosedError: This end was closed here.
            SegmentError: The system refused a descriptor or a thread.
        """

    def transit(self, parcels: int = 0, /) -> int:
        """
        Keep the channel alive for a handle on its way, among *parcels* of `reserve_parcels` if it goes to a new process; `open_receiver` takes what this returns.
        """

    def close(self) -> None:
        """
        Give the end up. The last one closes it for the sender. Twice is allowed.
        """

    @property
    def closed(self) -> bool: ...

    @property
    def channel_id(self) -> int: ...

    @property
    def leased(self) -> bool: ...

    @property
    def shared(self) -> bool: ...

    @property
    def segment(self) -> Segment: ...

    @property
    def bell_fd(self) -> int:
        """The descriptor that `fileno` returns, borrowed; -1 if there is none."""

    @bell_fd.setter
    def bell_fd(self, arg: int, /) -> None: ...

    @property
    def copies(self) -> bool:
        """
        Whether the large buffers of objects come in private memory, and not as views of the segment.
        """

    @copies.setter
    def copies(self, arg: bool, /) -> None: ...

    def __enter__(self) -> Receiver: ...

    def __exit__(self, *args: object) -> None: ...

    def __iter__(self) -> Receiver: ...

    def __aiter__(self) -> Receiver: ...

    def __anext__(self) -> Coroutine[Any, Any, bytes]: ...

    def __next__(self) -> bytes: ...

class Task:
    """A task taken from a channel. `Receiver.recv_task` makes it."""

    @property
    def task_id(self) -> int:
        """The number its sender gave it."""

    def load(self) -> Any:
        """
        Return the object that was sent. What its unpickling raises is raised here.
        """

    def release(self) -> None:
        """
        Free the task's memory, after its result was sent. Its arrays live on by themselves.
        """

class Leased:
    """
    A message that this process has taken and not yet finished.

    `Receiver.recv_leased` makes it. It is delivered again, to whoever receives next, if this process dies, gives it back, or lets go of it without `done()`. As a context manager it is done at the end of the block, and given back if that raises.

    A child made by fork has no part in it.
    """

    @property
    def data(self) -> memoryview:
        """
        The bytes that were sent, read-only and not copied. While it lives, the memory does; a message that is given back goes when it is gone.
        """

    def load(self) -> Any:
        """
        Return the object that was sent, made from a copy: it outlives the lease.

        What its unpickling raises is raised here; the lease goes on.
        """

    def done(self) -> None:
        """
        End the lease: the message will not be delivered again. Twice is allowed.

        Raises:
            ValueError: It is the parent's, from before a fork.
        """

    def give_back(self) -> None:
        """
        Put the message back for whoever receives next, before all younger ones.
        """

    @property
    def ended(self) -> bool:
        """Whether it was done, or given back."""

    @property
    def redelivered(self) -> bool:
        """Whether somebody had taken it before and did not finish it."""

    def __enter__(self) -> Leased: ...

    def __exit__(self, type: object, value: object, traceback: object, /) -> None: ...

def set_queue_end(error: type[Exception], /) -> None:
    """
    Say what `ObjectQueue` raises when it was shut down, in the whole process.
    """

class ObjectQueue:
    """
    Both ends of a shared channel of objects, with the methods of `multiprocessing.Queue`.
    """

    def __init__(self, sender: Sender, receiver: Receiver, maxsize: int = 0) -> None: ...

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """
        Put an object, as `multiprocessing.Queue.put`. Pickling errors are raised here.
        """

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the oldest object, as `multiprocessing.Queue.get`."""

    def put_nowait(self, obj: Any) -> None:
        """Put without waiting, as `multiprocessing.Queue.put_nowait`."""

    def get_nowait(self) -> Any:
        """Return the oldest object or raise `queue.Empty`."""

    def qsize(self) -> int:
        """Return the exact number of objects in the queue."""

    def empty(self) -> bool:
        """Say whether there is nothing to get."""

    def full(self) -> bool:
        """Say whether `maxsize` objects are in the queue."""

    def counts(self) -> tuple[int, int]:
        """Return how many objects were ever put and got, modulo 2**32."""

    def has_leases(self) -> bool:
        """Say whether another living process has an object under a lease."""

    def shut_down(self) -> None:
        """
        End the queue for all processes: `put` raises, and `get` once all was got.
        """

    def close_native(self) -> None:
        """Give both ends up in this process. What was put stays for the others."""

    @property
    def closed(self) -> bool: ...

    @property
    def sender(self) -> Sender: ...

    @property
    def receiver(self) -> Receiver: ...

def set_object_codec(dumps: object, loads: object, dump_bytes: object, reducers: Iterable[dict[type, Any]] | None = None, /) -> None:
    """
    Say how objects without an encoding of their own become messages, in the whole process.

    `dumps(obj)` returns a bytes-like payload and a list of buffers that go beside it (or None);
    `loads(payload, buffers)` makes the object again; `dump_bytes(obj)` returns a plain pickle.
    `reducers` are the tables of registered reducers, such as `copyreg.dispatch_table`, looked at
    each time. With them, numpy arrays of numbers whose type is in none of them get an encoding
    of their own; without, `dumps` gets all arrays.
    """

class Results:
    """The results of an executor, received for the futures in *pending*."""

    def __init__(self, receiver: Receiver, pending: dict[int, Any]) -> None: ...

    def receive(self, timeout: float | None = None) -> Any:
        """
        Complete futures until something else comes, and return that, as `recv_object`.

        None: look around, for instance because nothing is pending any more. One thread
        alone calls this.
        """

    def wait_alone(self, future: Any, task_id: int, timeout: float | None) -> bool:
        """
        Wait for the only call that is pending, up to *timeout* seconds.

        True if its future is completed. False does not say that it is not: it is the
        collector's business now.
        """

    def recall(self) -> None:
        """Have the collector take the next message."""

    @property
    def is_awaited(self) -> bool:
        """Whether a thread is in `wait_alone`, which only a message ends."""

    @property
    def settled(self) -> int:
        """How many futures were completed here."""

    @property
    def alone(self) -> int:
        """How many of these in `wait_alone`."""

def wait(ends: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """
    Wait until any of *ends* is ready and return those that are, in the order given.

    A `Receiver` is ready when a message, or the end, is there; a `Sender` when there is room
    (for the message that it refused last, if it did), or nobody is left to receive. As
    `multiprocessing.connection.wait` it also takes objects with `fileno()` and descriptors.
    Nothing is taken: another user of a shared end may be faster, so receive with a time-out.
    Of no ends at all the answer is [], at once.

    Args:
        ends: Any number of them, of any segments.
        timeout: Seconds to wait; None waits for ever, 0 does not wait.

    Returns:
        What is ready; [] if the time is up.

    Raises:
        ClosedError: One of the ends was closed here.
        SegmentError: The system refused a descriptor or a thread, or one is not open.
    """
