"""Drills of the store: processes that are killed, files that are cut or altered.

Nothing that was committed is lost or made up.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from goals.store import Answer, Embedding, Store
from lab.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60.0  # no wait is longer
SURVIVORS, VICTIMS = 6, 2
BATCHES, ROWS = 12, 40
SOURCE = ("gemma", "0123456789abcdef", "{}")


def batch_of(worker, batch):
    """Return the rows of a batch: half are of this worker only, half all workers write."""
    rows = [
        Answer(*SOURCE, f"worker {worker} batch {batch} row {row}", f"- answer {row}\n" * 9)
        for row in range(ROWS)
    ]
    rows += [
        Answer(*SOURCE, f"all batch {batch} row {row}", f"worker {worker}") for row in range(ROWS)
    ]
    vector = np.eye(4, dtype=np.float32)[batch % 4]
    return rows + [
        Embedding("encoder", f"{who} batch {batch}", vector) for who in (f"worker {worker}", "all")
    ]


def work(path, log, worker, batches):
    """Write batches; note each on the disk once it is committed.

    Begins when there is a file `go` beside the log.
    """
    with Store(path) as store, open(log, "ab", buffering=0) as file:
        until(lambda: Path(log).with_name("go").exists())
        for batch in range(int(batches)):
            store.add(batch_of(worker, batch))
            file.write(f"{batch}\n".encode())
            os.fsync(file.fileno())


def until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.002)


@contextmanager
def started(*commands):
    """Start Python processes; whatever happens, none is left at the end."""
    processes = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait(SECONDS)


def verify(path):
    command = [sys.executable, "-m", "goals.store_cli", "verify", path]
    return subprocess.run(command, cwd=ROOT, timeout=SECONDS, capture_output=True, text=True)


def committed(log):
    return [int(line) for line in log.read_text().splitlines()]


def test_eight_processes_write_and_two_are_killed(tmp_path):
    path = tmp_path / "stores" / "shared.sqlite"
    logs = [tmp_path / f"{worker}.log" for worker in range(SURVIVORS + VICTIMS)]
    batches = [BATCHES] * SURVIVORS + [10**9] * VICTIMS
    commands = [
        ("tests.test_store_drill", path, logs[i], i, number) for i, number in enumerate(batches)
    ]
    with started(*commands) as processes:
        until(lambda: all(log.exists() for log in logs))
        (tmp_path / "go").touch()
        for victim, least in zip(range(SURVIVORS, SURVIVORS + VICTIMS), (2, 5), strict=True):
            until(
                lambda victim=victim, least=least: logs[victim].read_bytes().count(b"\n") >= least
            )
            time.sleep(0.003 * least)
            processes[victim].send_signal(signal.SIGKILL)
        while_written = verify(path)
        codes = [process.wait(SECONDS) for process in processes]
    assert codes == [0] * SURVIVORS + [-signal.SIGKILL] * VICTIMS
    for checked in (while_written, verify(path)):
        assert checked.returncode == 0 and "all is fine" in checked.stdout, checked
    with Store(path, read_only=True) as store:
        rows = list(store.rows())
    stored = {row[:-1]: row for row in rows}
    assert len(stored) == len(rows)
    expected = 0
    for worker, log in enumerate(logs):
        done = committed(log)
        assert done == list(range(len(done))) and (
            done == list(range(BATCHES)) or worker >= SURVIVORS
        )
        # A killed worker may have committed one batch more than it could note, but no part of a
        # batch.
        nearly = batch_of(worker, len(done))
        written = [row[:-1] in stored for row in nearly if f"worker {worker}" in row[-2]]
        assert all(written) or not any(written)
        done += [len(done)] if any(written) else []
        for row in (row for batch in done for row in batch_of(worker, batch)):
            there = stored[row[:-1]]
            if isinstance(row, Embedding):
                assert there.vector.tobytes() == row.vector.tobytes()
            else:
                assert there.answer == row.answer or (
                    row.question.startswith("all") and there.answer.startswith("worker")
                )
        expected += len(done) * (ROWS + 1)
    assert sum(row[-2].startswith("worker") for row in rows) == expected
    Store(path).close()  # a reader that is the last to leave cannot fold the log in
    assert os.listdir(path.parent) == ["shared.sqlite"]


def test_an_import_that_is_killed_leaves_nothing(tmp_path):
    path, file = tmp_path / "s.sqlite", tmp_path / "rows.jsonl"
    with Store(path) as store:
        store.put_answers(*SOURCE, {"before": "- sleep"})
    lines = (
        json.dumps(Answer(*SOURCE, f"question {i}", "- eat cow\n" * 20)._asdict())
        for i in range(60_000)
    )
    file.write_text("\n".join(lines))
    log = Path(f"{path}-wal")
    with started(("goals.store_cli", "import", file, "--into", path)) as (process,):
        until(lambda: process.poll() is not None or (log.exists() and log.stat().st_size > 10**6))
        process.kill()
        assert process.wait(SECONDS) == -signal.SIGKILL
    assert verify(path).returncode == 0
    with Store(path) as store:
        assert store.count() == {"sources": 1, "answers": 1, "embeddings": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the bytes of a store of a dozen pages, each with a structure, and its rows."""
    path = tmp_path_factory.mktemp("whole") / "s.sqlite"
    with Store(path) as store:
        for batch in range(4):
            store.add(batch_of(0, batch))
        rows = list(map(str, store.rows()))
    return path.read_bytes(), rows


def opened(path, read_only):
    """Return the rows of a store, None if it is refused as it must be.

    That is with its name, what to do, and untouched.
    """
    content = path.read_bytes()
    try:
        with Store(path, read_only=read_only) as store:
            return list(map(str, store.rows()))
    except UserError as error:
        message = str(error)
        assert str(path) in message and "\n" not in message
        assert any(
            mend in message for mend in ("restore it", "another path", "update the program")
        ), message
        assert path.read_bytes() == content and os.listdir(path.parent) == [path.name]
        return None


@pytest.mark.parametrize("read_only", [False, True])
def test_a_store_cut_anywhere_is_refused(tmp_path, whole, read_only):
    content, _ = whole
    path = tmp_path / "s.sqlite"
    pages = len(content) // 4096
    assert pages > 10
    cuts = {
        0,
        1,
        15,
        16,
        99,
        100,
        101,
        4095,
        4097,
        len(content) - 1,
        *(4096 * page for page in range(1, pages)),
    }
    for cut in sorted(cuts):
        path.write_bytes(content[:cut])
        assert opened(path, read_only) is None, cut


def flip(content, byte, bit):
    changed = bytearray(content)
    changed[byte] ^= 1 << bit
    return bytes(changed)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_bit_of_the_header_is_refused_or_means_nothing(tmp_path, whole, read_only):
    content, rows = whole
    path, refused = tmp_path / "s.sqlite", 0
    for byte in range(100):
        for bit in range(8):
            path.write_bytes(flip(content, byte, bit))
            found = opened(path, read_only)
            assert found in (None, rows), (byte, bit)
            refused += found is None
    assert refused > 300


def test_a_bit_of_a_pages_structure_is_refused_or_means_nothing(tmp_path, whole):
    content, rows = whole
    path, refused = tmp_path / "s.sqlite", []
    for page in range(1, len(content) // 4096):
        for byte in range(
            14
        ):  # the page's header of eight or twelve bytes, then where its cells are
            path.write_bytes(flip(content, 4096 * page + byte, (page + byte) % 8))
            found = opened(path, read_only=True)
            assert found in (None, rows), (page, byte)
            refused.append(found is None)
    assert np.mean(refused) > 0.8


def test_a_log_cut_or_altered_anywhere_gives_whole_transactions(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        for batch in range(6):
            store.add(batch_of(0, batch))
        content, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    logs = [log[: len(log) * part // 16] for part in range(17)] + [
        flip(log, len(log) * part // 16, 3) for part in range(16)
    ]
    lengths = set()
    for number, changed in enumerate(logs):
        path = tmp_path / str(number) / "s.sqlite"
        path.parent.mkdir()
        path.write_bytes(content)
        Path(f"{path}-wal").write_bytes(changed)
        with Store(path) as store:
            questions = {row.question for row in store.rows() if isinstance(row, Answer)}
            batches = len(questions) // (2 * ROWS)
            assert questions == {
                row[-2]
                for batch in range(batches)
                for row in batch_of(0, batch)
                if isinstance(row, Answer)
            }
            assert store.verify()[1] == {}
        lengths.add(batches)
    assert lengths == set(range(7))


if __name__ == "__main__":
    work(*sys.argv[1:])
