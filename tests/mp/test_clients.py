# SPDX-License-Identifier: Apache-2.0
"""Programs of other people that take a context, a queue or a pipe, with ours.

Those that are not in the standard library run where they are installed:
`pip install torch gymnasium aiomultiprocess pebble loguru`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.process
import logging
import logging.handlers
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf_mp

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 90


@pytest.fixture
def context(start_method: str) -> Any:
    return ipcbuf_mp.get_context(start_method)


def square(number: int) -> int:
    return number * number


def run(program: str, folder: Path, *args: str) -> str:
    """Run a program that says `if __name__ == ...`, and return what it prints."""
    script = folder / "program.py"
    script.write_text(program)
    result = subprocess.run(
        [sys.executable, str(script), *args],
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(folder)},  # workers of torch leave folders
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_standard_librarys_executor(context: Any) -> None:
    executor = concurrent.futures.process.ProcessPoolExecutor(2, mp_context=context)
    with executor:
        assert list(executor.map(square, range(100))) == [square(n) for n in range(100)]


def log_something(queue: Any, name: str) -> None:
    logger = logging.getLogger("clients")
    logger.addHandler(logging.handlers.QueueHandler(queue))
    logger.setLevel(logging.INFO)
    for number in range(20):
        logger.info("%s %d", name, number)


def test_handlers_and_listener_of_logging(context: Any) -> None:
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    queue = context.Queue()
    listener = logging.handlers.QueueListener(queue, Keep())
    listener.start()
    children = [context.Process(target=log_something, args=(queue, name)) for name in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
    listener.stop()

    for name in "ab":
        assert [text for text in records if text[0] == name] == [f"{name} {n}" for n in range(20)]


DATA_LOADER = """
import sys, torch
from torch.utils.data import DataLoader, Dataset
import ipcbuf_mp
class Squares(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, at):
        return torch.full((1000,), at * at)
if __name__ == "__main__":
    context = ipcbuf_mp.get_context(sys.argv[1])
    loader = DataLoader(Squares(), batch_size=8, num_workers=2, persistent_workers=True,
                        multiprocessing_context=context)
    for _ in range(2):
        print(sum(int(batch[:, 0].sum()) for batch in loader))
"""


def test_data_loader_of_torch(start_method: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    expected = sum(number * number for number in range(64))
    assert run(DATA_LOADER, tmp_path, start_method).split() == [str(expected)] * 2


VECTOR_ENVIRONMENT = """
import sys
import ipcbuf_mp
ipcbuf_mp.install()
import gymnasium
def make():
    return gymnasium.make("CartPole-v1")
if __name__ == "__main__":
    environment = gymnasium.vector.AsyncVectorEnv([make] * 2, context=sys.argv[1])
    observations, _ = environment.reset(seed=1)
    for _ in range(20):
        observations, rewards, *_ = environment.step(environment.action_space.sample())
    environment.close()
    print(observations.shape, rewards.shape)
"""


def test_vector_environments_of_gymnasium(start_method: str, tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    assert run(VECTOR_ENVIRONMENT, tmp_path, start_method) == "(2, 4) (2,)"


AIOMULTIPROCESS = """
import asyncio, sys
import ipcbuf_mp
ipcbuf_mp.install()
import aiomultiprocess
async def square(number):
    return number * number
async def main():
    aiomultiprocess.set_start_method(sys.argv[1])
    async with aiomultiprocess.Pool(2) as pool:
        print(await pool.map(square, range(5)))
if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_aiomultiprocess(method: str, tmp_path: Path) -> None:
    pytest.importorskip("aiomultiprocess")
    assert run(AIOMULTIPROCESS, tmp_path, method) == "[0, 1, 4, 9, 16]"


def test_pebble(context: Any) -> None:
    pebble = pytest.importorskip("pebble")
    with pebble.ProcessPool(2, context=context) as pool:
        futures = [pool.schedule(square, (number,)) for number in range(10)]
        assert [future.result(PATIENCE) for future in futures] == [square(n) for n in range(10)]


LOGURU = """
import sys
import ipcbuf_mp
from loguru import logger
def work(logger, name):
    for number in range(20):
        logger.info("{} {}", name, number)
    logger.complete()
if __name__ == "__main__":
    context = ipcbuf_mp.get_context(sys.argv[1])
    logger.remove()
    logger.add(sys.argv[2], enqueue=True, context=context, format="{message}")
    children = [context.Process(target=work, args=(logger, name)) for name in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join()
    logger.complete()
"""


def test_loguru(start_method: str, tmp_path: Path) -> None:
    pytest.importorskip("loguru")
    log = tmp_path / "log"
    run(LOGURU, tmp_path, start_method, str(log))
    lines = log.read_text().splitlines()
    for name in "ab":
        assert [line for line in lines if line[0] == name] == [f"{name} {n}" for n in range(20)]


def test_a_queue_in_an_event_loop(context: Any) -> None:
    """Asyncio's `add_reader`, reading one item for each call."""

    async def collect() -> list[Any]:
        queue, got = context.Queue(), []
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def on_ready() -> None:
            got.append(queue.get())
            if len(got) == 30:
                loop.remove_reader(queue._reader.fileno())
                done.set_result(None)

        loop.add_reader(queue._reader.fileno(), on_ready)
        child = context.Process(target=put_all, args=(queue, 30))
        child.start()
        await asyncio.wait_for(done, PATIENCE)
        child.join(PATIENCE)
        return got

    assert asyncio.run(collect()) == list(range(30))


def put_all(queue: Any, count: int) -> None:
    for number in range(count):
        queue.put(number)
