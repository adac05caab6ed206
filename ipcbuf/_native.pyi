"""The compiled part of ipcbuf. Use the names that `ipcbuf` exports."""

from typing import Any, overload

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
        `messages`, `bytes`, `max_items`, `max_bytes` (0: no limit), and `sender` and `receiver`:
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

    @property
    def name(self) -> str | None:
        """The name it was opened by in this process, None if by none."""

    def unlink_native(self) -> None:
        """As `ipcbuf.Segment.unlink`."""

    def retire_native(self) -> None:
        """Remove the name if nobody else uses the segment."""

def unlink_segment(name: str) -> None: ...

def list_segments() -> list[tuple[str, int, int, tuple[int, ...], bool, str | None]]: ...

def collect_segments() -> list[str]: ...

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

    def send_task(self, obj: object, task_id: int, /) -> int:
        """
        Send an object as a task that can be cancelled until it is received.

        Returns:
            What `Segment.cancel_task` needs beside the task's id.
        """

    def pending(self) -> int:
        """Return how many messages are in the channel."""

    def transit(self) -> int:
        """
        Keep the channel alive for a handle on its way; `open_sender` takes what this returns.
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

    `Segment.channel` makes it. An exclusive end (shared=False) belongs to the first process that uses it, one thread at a time. Iterating yields bytes until the channel ends.
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

    def recv_task(self, timeout: float | None = None) -> Task:
        """Start and return the oldest task that was not cancelled."""

    def poll(self, timeout: float | None = 0.0) -> bool:
        """
        Say whether a message, or the end, is there within *timeout* seconds. Takes nothing.
        """

    def pending(self) -> int:
        """Return how many messages are in the channel."""

    def fileno(self) -> int:
        """
        Return a descriptor that is readable while a message is there, from now on.
        """

    def transit(self) -> int:
        """
        Keep the channel alive for a handle on its way; `open_receiver` takes what this returns.
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

    def __enter__(self) -> Receiver: ...

    def __exit__(self, *args: object) -> None: ...

    def __iter__(self) -> Receiver: ...

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

    def close_native(self) -> None:
        """Give both ends up in this process. What was put stays for the others."""

    @property
    def closed(self) -> bool: ...

    @property
    def sender(self) -> Sender: ...

    @property
    def receiver(self) -> Receiver: ...

def set_object_codec(dumps: object, loads: object, dump_bytes: object, /) -> None:
    """
    Say how objects without an encoding of their own become messages, in the whole process.

    `dumps(obj)` returns a bytes-like payload and a list of buffers that go beside it (or None);
    `loads(payload, buffers)` makes the object again; `dump_bytes(obj)` returns a plain pickle.
    """
