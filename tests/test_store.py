"""The store: what is put in comes out, several processes share it, and what is not ours is never touched."""

import multiprocessing
import os
import signal
import sqlite3
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from goals import store
from goals.store import Store
from lab.errors import UserError

SOURCE = ("gemma", "0123456789abcdef", "{}")
# Any code point: the default alphabet of hypothesis leaves lone surrogates out.
TEXT = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=()), max_size=30)


def make(path, answers=None):
    with Store(path) as new:
        new.put_answers(*SOURCE, answers or {"You see cow.": "- eat cow"})
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("store") / "shared.sqlite") as opened:
        yield opened


@settings(max_examples=100, deadline=None)
@given(st.tuples(TEXT, TEXT, TEXT), st.dictionaries(TEXT, TEXT, max_size=8))
def test_answers_come_back(shared, source, answers):
    before = shared.get_answers(*source, answers)
    shared.put_answers(*source, answers)
    shared.put_answers(*source, dict.fromkeys(answers, "second"))
    assert shared.get_answers(*source, [*answers, *answers]) == answers | before


@settings(max_examples=50, deadline=None)
@given(TEXT, st.dictionaries(TEXT, npst.arrays(np.float32, 5), max_size=5))
def test_embeddings_come_back_bit_for_bit(shared, encoder, embeddings):
    expected = embeddings | shared.get_embeddings(encoder, embeddings)
    shared.put_embeddings(encoder, embeddings)
    found = shared.get_embeddings(encoder, embeddings)
    assert {t: v.tobytes() for t, v in found.items()} == {t: v.tobytes() for t, v in expected.items()}
    assert all(v.dtype == np.float32 and v.shape == (5,) and v.flags.writeable for v in found.values())


def test_lone_surrogates_are_keys_of_their_own(tmp_path):
    answers = {
        "\ud800": "high\udfff",
        "?": "mark",
        "a\0b": "nul",
        "a": "short",
        "": "",
    }
    path = make(tmp_path / "s.sqlite", answers)
    with Store(path) as reopened:
        assert reopened.get_answers(*SOURCE, answers) == answers


def test_sources_do_not_mix_and_missing_is_left_out(tmp_path):
    with Store(make(tmp_path / "s.sqlite")) as opened:
        for changed in range(3):
            other = [*SOURCE]
            other[changed] += "'"
            assert opened.get_answers(*other, ["You see cow."]) == {}
        assert opened.get_answers(*SOURCE, ["You see tree."]) == {}
        assert opened.get_embeddings("encoder", ["You see cow."]) == {}
        assert opened.models() == ["gemma"]


def test_more_keys_than_one_query_takes(tmp_path):
    answers = {f"question {i}": f"answer {i}" for i in range(2 * store.KEYS_PER_QUERY + 1)}
    with Store(make(tmp_path / "s.sqlite", answers)) as opened:
        assert opened.get_answers(*SOURCE, (q for q in answers)) == answers
        assert opened.count() == {"sources": 1, "answers": len(answers), "embeddings": 0}


def test_a_failed_put_leaves_nothing(tmp_path):
    with Store(tmp_path / "s.sqlite") as opened:
        with pytest.raises(AttributeError):
            opened.put_answers(*SOURCE, {"asked": "- eat cow", "unanswered": None})
        assert opened.count() == {"sources": 0, "answers": 0, "embeddings": 0}
        opened.put_answers(*SOURCE, {"asked": "- eat cow"})


def write_many(path, worker, barrier):
    barrier.wait()
    with Store(path) as opened:
        for i in range(30):
            opened.put_answers(*SOURCE, {f"own {worker} {i}": "x", f"contested {i}": str(worker)})


def write_and_die(path):
    opened = Store(path)
    opened.put_answers(*SOURCE, {"committed": "yes"})
    opened._connection.execute("BEGIN IMMEDIATE")
    opened._connection.execute("DELETE FROM answers")
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_create_and_write_one_store_at_once(tmp_path):
    path, context = tmp_path / "deep" / "er" / "s.sqlite", multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=write_many, args=(path, worker, barrier)) for worker in range(2)]
    workers.append(context.Process(target=write_and_die, args=(tmp_path / "killed.sqlite",)))
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
    assert [process.exitcode for process in workers] == [0, 0, -signal.SIGKILL]
    with Store(path) as opened:
        assert opened.count()["answers"] == 2 * 30 + 30
        contested = opened.get_answers(*SOURCE, [f"contested {i}" for i in range(30)])
        assert set(contested.values()) <= {"0", "1"}
    assert sorted(os.listdir(path.parent)) == ["s.sqlite"]
    for read_only in (True, False):
        with Store(tmp_path / "killed.sqlite", read_only=read_only) as opened:
            assert opened.get_answers(*SOURCE, ["committed"]) == {"committed": "yes"}


def test_read_only_writes_nothing_and_sees_what_others_add(tmp_path):
    path = make(tmp_path / "s.sqlite")
    content = path.read_bytes()
    with Store(path, read_only=True) as reader:
        assert reader.get_answers(*SOURCE, ["You see cow."]) == {"You see cow.": "- eat cow"}
        with pytest.raises(UserError, match="reading only"):
            reader.put_answers(*SOURCE, {"a": "b"})
        assert os.listdir(tmp_path) == ["s.sqlite"]
        assert path.read_bytes() == content
        with Store(path) as writer:
            writer.put_answers(*SOURCE, {"new": "- sleep"})
            assert reader.get_answers(*SOURCE, ["new"]) == {"new": "- sleep"}
        with Store(path) as writer:
            writer.put_answers(*SOURCE, {"newer": "- sleep"})
        assert reader.get_answers(*SOURCE, ["newer"]) == {"newer": "- sleep"}


def test_read_only_wants_a_file_and_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="no.sqlite does not exist"):
        Store(tmp_path / "folder" / "no.sqlite", read_only=True)
    assert os.listdir(tmp_path) == []


def test_read_only_refuses_a_log_without_its_index(tmp_path):
    with Store(make(tmp_path / "s.sqlite")) as writer:
        writer.put_answers(*SOURCE, {"a": "b"})
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("s.sqlite", "s.sqlite-wal"):
            (copy / name).write_bytes((tmp_path / name).read_bytes())
    with pytest.raises(UserError, match="open it once for writing"):
        Store(copy / "s.sqlite", read_only=True)
    assert sorted(os.listdir(copy)) == ["s.sqlite", "s.sqlite-wal"]
    with Store(copy / "s.sqlite") as merged:
        assert merged.get_answers(*SOURCE, ["a"]) == {"a": "b"}


def foreign(path):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE answers (mine)")
    connection.close()


def damaged(path):
    content = bytearray(make(path, {str(i): "long " * 50 for i in range(300)}).read_bytes())
    content[5 * 4096 : 9 * 4096] = b"\x5a" * (4 * 4096)
    path.write_bytes(content)


def newer(path):
    content = bytearray(make(path).read_bytes())
    content[60:64] = struct.pack(">i", store.SCHEMA_VERSION + 1)
    path.write_bytes(content)


REFUSED = {
    "text": (
        lambda path: path.write_text("not a database, but longer than a header of one hundred bytes\n" * 9),
        "not an SQLite",
    ),
    "empty": (lambda path: path.write_bytes(b""), "not an SQLite"),
    "header only": (lambda path: path.write_bytes(make(path).read_bytes()[:100]), "torn"),
    "cut in a page": (lambda path: path.write_bytes(make(path).read_bytes()[:-1000]), "torn"),
    "cut between pages": (lambda path: path.write_bytes(make(path).read_bytes()[:-8192]), "damaged"),
    "damaged": (damaged, "damaged"),
    "foreign": (foreign, "another program"),
    "newer": (newer, f"schema {store.SCHEMA_VERSION + 1}"),
    "folder": (lambda path: path.mkdir(), "cannot be read"),
}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_refuses_and_leaves_untouched(tmp_path, case, read_only):
    spoil, message = REFUSED[case]
    path = tmp_path / "s.sqlite"
    spoil(path)
    content = path.read_bytes() if path.is_file() else None
    with pytest.raises(UserError, match=message) as caught:
        Store(path, read_only=read_only)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["s.sqlite"]
    assert content is None or path.read_bytes() == content


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="give another path"):
        Store(tmp_path / "file" / "s.sqlite")
    assert (tmp_path / "file").read_text() == "mine"


def test_older_schema_is_migrated_by_number(tmp_path, monkeypatch):
    path = make(tmp_path / "s.sqlite")
    monkeypatch.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, ("ALTER TABLE sources ADD COLUMN note TEXT",)))
    monkeypatch.setattr(store, "SCHEMA_VERSION", 2)
    with pytest.raises(UserError, match="older schema 1"):
        Store(path, read_only=True)
    with Store(path) as migrated:
        assert migrated.get_answers(*SOURCE, ["You see cow."]) == {"You see cow.": "- eat cow"}
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT note FROM sources").fetchall() == [(None,)]
    connection.close()
