"""The store: what is put in comes out, processes share it, what is not ours is never touched."""

import gc
import gzip
import hashlib
import json
import multiprocessing
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from goals import store, store_cli
from goals.store import Answer, Embedding, Store
from lab.errors import UserError

SOURCE = ("gemma", "0123456789abcdef", "{}")
# Any code point: the default alphabet of hypothesis leaves lone surrogates out.
TEXT = st.text(
    st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=()), max_size=30
)


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
    assert {t: v.tobytes() for t, v in found.items()} == {
        t: v.tobytes() for t, v in expected.items()
    }
    assert all(
        v.dtype == np.float32 and v.shape == (5,) and v.flags.writeable for v in found.values()
    )


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
    workers = [
        context.Process(target=write_many, args=(path, worker, barrier)) for worker in range(2)
    ]
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
        lambda path: path.write_text(
            "not a database, but longer than a header of one hundred bytes\n" * 9
        ),
        "not an SQLite",
    ),
    "empty": (lambda path: path.write_bytes(b""), "not an SQLite"),
    "header only": (lambda path: path.write_bytes(make(path).read_bytes()[:100]), "torn"),
    "cut in a page": (lambda path: path.write_bytes(make(path).read_bytes()[:-1000]), "torn"),
    "cut between pages": (
        lambda path: path.write_bytes(make(path).read_bytes()[:-8192]),
        "damaged",
    ),
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
    monkeypatch.setattr(
        store, "MIGRATIONS", (*store.MIGRATIONS, ("ALTER TABLE sources ADD COLUMN note TEXT",))
    )
    monkeypatch.setattr(store, "SCHEMA_VERSION", 2)
    with pytest.raises(UserError, match="older schema 1"):
        Store(path, read_only=True)
    with Store(path) as migrated:
        assert migrated.get_answers(*SOURCE, ["You see cow."]) == {"You see cow.": "- eat cow"}
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT note FROM sources").fetchall() == [(None,)]
    connection.close()


# The command line, and what is read and written by it


UNIT = np.eye(4, dtype=np.float32)
ANSWER = {"model": "gemma", "prompt": "h", "parameters": "{}", "question": "q", "answer": "a"}
EMBEDDING = {"encoder": "e", "text": "t", "vector": "AACAPwAAAAA="}  # 1, 0


@pytest.fixture
def cli(monkeypatch, capsys):
    """Return a function that runs a command and returns exit code, output and error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["store", *map(str, arguments)])
        code = 0
        try:
            store_cli.main()
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def fill(path, rows):
    with Store(path) as opened:
        opened.add(rows)
    return path


def comparable(rows):
    """Return the values of rows, a vector's as its bytes, by their keys."""
    return {
        row[:-1]: row.vector.tobytes() if isinstance(row, Embedding) else row.answer for row in rows
    }


def read(path):
    with Store(path, read_only=True) as opened:
        return comparable(opened.rows())


def a_store(path):
    rows = [
        Answer(model, prompt, "{}", f"q{i}", f"- eat cow\n- {model}")
        for model in "MN"
        for prompt in "12"
        for i in range(3)
    ]
    return fill(
        path,
        [
            *rows,
            *(
                Embedding("e", text, UNIT[i])
                for i, text in enumerate(["q0", "eat cow", "m", "lost"])
            ),
        ],
    )


def unit_vectors(size):
    numbers = npst.arrays(np.float32, size, elements=st.floats(-1, 1, width=32)).filter(
        lambda v: np.linalg.norm(v) > 1e-3
    )
    return numbers.map(lambda v: v / np.linalg.norm(v))


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """Return three open stores and a path, which all examples share.

    Making a file takes longer than filling it.
    """
    folder = tmp_path_factory.mktemp("ways")
    stores = [Store(folder / f"{name}.sqlite") for name in ("first", "imported", "merged")]
    yield *stores, folder / "rows.jsonl.gz"
    for opened in stores:
        opened.close()


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.tuples(TEXT, TEXT, TEXT, TEXT), TEXT, max_size=6),
    st.dictionaries(st.tuples(TEXT, TEXT), unit_vectors(3), max_size=4),
)
def test_rows_survive_every_way_out_and_in(ways, answers, embeddings):
    first, imported, merged, file = ways
    before = comparable(first.rows())
    rows = [Answer(*key, answer) for key, answer in answers.items()]
    rows += [Embedding(*key, vector) for key, vector in embeddings.items()]
    first.add(rows)
    store_cli.write_jsonl(file, first.rows())
    imported.add(store_cli.read_jsonl(file, imported.encoders()))
    merged.add(first.rows())
    expected = comparable(rows) | before
    assert (
        comparable(first.rows())
        == comparable(imported.rows())
        == comparable(merged.rows())
        == expected
    )
    assert list(map(str, imported.rows())) == list(map(str, merged.rows()))
    assert imported.verify()[1] == {}


def test_adding_counts_and_keeps_what_is_there(tmp_path):
    rows = [
        Answer(*SOURCE, "known", "a"),
        Answer(*SOURCE, "changed", "a"),
        Embedding("e", "t", UNIT[0]),
    ]
    later = [
        Answer(*SOURCE, "known", "a"),
        Answer(*SOURCE, "changed", "b"),
        Answer(*SOURCE, "new", "c"),
    ]
    later += [
        Embedding("e", "t", UNIT[1]),
        Embedding("f", "t", UNIT[1]),
        Embedding("f", "t", UNIT[1]),
    ]
    with Store(fill(tmp_path / "s.sqlite", rows)) as opened:
        assert opened.add(later) == {
            "answers": Counter(new=1, known=1, conflicting=1),
            "embeddings": Counter(new=1, known=1, conflicting=1),
        }
        assert opened.get_answers(*SOURCE, ["changed"]) == {"changed": "a"}
        assert opened.get_embeddings("e", ["t"])["t"].tolist() == [1, 0, 0, 0]


def test_merge(tmp_path, cli):
    target, source = (
        make(tmp_path / "target.sqlite", {"a": "1", "b": "1"}),
        make(tmp_path / "source.sqlite", {"b": "2", "c": "2"}),
    )
    content = source.read_bytes()
    code, out, _ = cli("merge", source, a_store(tmp_path / "other.sqlite"), "--into", target)
    assert (
        code == 0
        and "source.sqlite: answers: 1 new, 0 known, 1 conflicting (what was there stays)" in out
    )
    assert "other.sqlite: answers: 12 new" in out and "other.sqlite: embeddings: 4 new" in out
    with Store(target) as merged:
        assert merged.get_answers(*SOURCE, "abc") == {"a": "1", "b": "1", "c": "2"}
    assert source.read_bytes() == content
    new = tmp_path / "new.sqlite"
    code, _, error = cli("merge", source, tmp_path / "no.sqlite", "--into", new)
    assert code == 2 and "no.sqlite does not exist" in error and not new.exists()
    assert "name the stores" in cli("merge", "--into", new)[2] and not new.exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".sqlite"])
def test_equal_stores_give_equal_exports(tmp_path, cli, suffix):
    first = a_store(tmp_path / "first.sqlite")
    with Store(first) as opened:
        rows = list(opened.rows())
    second = tmp_path / "second.sqlite"
    for row in reversed(rows):
        fill(second, [row])
    for path in (first, second):
        code, out, _ = cli("export", path, path.with_suffix(f".out{suffix}"))
        assert code == 0 and "12 answers, 4 embeddings" in out
    contents = [(tmp_path / f"{name}.out{suffix}").read_bytes() for name in ("first", "second")]
    assert contents[0] == contents[1]
    assert suffix != ".jsonl.gz" or contents[0][4:8] == bytes(4)  # no time
    code, _, error = cli("export", first, tmp_path / f"second.out{suffix}")
    assert code == 2 and "exists: give another path" in error
    assert (tmp_path / f"second.out{suffix}").read_bytes() == contents[1]
    assert len(os.listdir(tmp_path)) == 4


def test_a_packed_store_is_one_file_and_stays_as_it_is(tmp_path, cli):
    path, packed = a_store(tmp_path / "s.sqlite"), tmp_path / "folder" / "packed.sqlite"
    assert cli("export", path, packed, "--model", "M", "--prompt", "2")[0] == 0
    content = packed.read_bytes()
    assert content[18:20] == b"\1\1"  # no write-ahead log
    with Store(packed, read_only=True) as opened:
        assert opened.sources() == [("M", "2", "{}")] and opened.count()["embeddings"] == 4
        assert os.listdir(packed.parent) == ["packed.sqlite"]
    assert packed.read_bytes() == content and os.listdir(packed.parent) == ["packed.sqlite"]


def test_export_refuses_what_it_cannot_do(tmp_path, cli):
    path = a_store(tmp_path / "s.sqlite")
    for arguments, message in (
        ((tmp_path / "s.csv",), "must end in .jsonl, .jsonl.gz, .sqlite"),
        ((tmp_path / "x.jsonl", "--model", "m"), "no answers of model m: it has M, N"),
        ((tmp_path / "x.jsonl", "--prompt", "3"), "no answers of prompt 3: it has 1, 2"),
        ((path / "x.jsonl",), "cannot be written"),
    ):
        code, _, error = cli("export", path, *arguments)
        assert code == 2 and message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["s.sqlite"]


def test_jsonl_is_plain_to_read(tmp_path, cli):
    path = fill(
        tmp_path / "s.sqlite",
        [Answer(*SOURCE, "Süß\n", "\ud83d\ude00"), Embedding("e", "t", [1, 0])],
    )
    cli("export", path, tmp_path / "s.jsonl")
    first, second = (tmp_path / "s.jsonl").read_text("utf-8").splitlines()
    assert "Süß" in first
    assert json.loads(first) == dict(
        zip(Answer._fields, (*SOURCE, "Süß\n", {"base64": "7aC97biA"}), strict=True)
    )
    assert json.loads(second) == EMBEDDING


def line(fields=None, /, **changes):
    return json.dumps((fields or ANSWER) | changes).encode()


BAD_LINES = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": line().replace(b"gemma", b"\xff"),
    "deep": b"[" * 9999,
    "a list": b"[1]",
    "a field too many": line(more="x"),
    "a field too few": line(EMBEDDING | {}).replace(b"encoder", b"model"),
    "null": line(answer=None),
    "number": line(question=1),
    "other object": line(question={"utf": "x"}),
    "not base64": line(question={"base64": "?"}),
    "not surrogates": line(question={"base64": "/w=="}),
    "vector not base64": line(EMBEDDING, vector="AACAPw===?"),
    "vector of numbers": line(EMBEDDING, vector=[1, 0]),
    "vector cut": line(EMBEDDING, vector="AACAPwAA"),
    "empty vector": line(EMBEDDING, vector=""),
    "not finite": line(EMBEDDING, vector="AADAfwAAAAA="),
    "not unit": line(EMBEDDING, vector="AAAAQAAAAAA="),
    "another size": line(EMBEDDING, vector="AACAPwAAAAAAAAAA"),
    "not the store's size": line(EMBEDDING, encoder="there"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_and_nothing_imported(tmp_path, cli, case):
    there = [Answer(*SOURCE, "a", "b"), Embedding("there", "t", UNIT[0])]
    path, file = fill(tmp_path / "s.sqlite", there), tmp_path / "new.jsonl"
    file.write_bytes(b"\n".join([line(), line(EMBEDDING), BAD_LINES[case], line(question="later")]))
    code, _, error = cli("import", file, "--into", path)
    assert (
        code == 2
        and f"{file} line 3: " in error
        and "nothing was imported" in error
        and error.count("\n") == 1
    )
    assert len(read(path)) == 2
    file.write_bytes(b"\n".join([line(), line(EMBEDDING), line(question="later")]))
    assert cli("import", file, "--into", path)[0] == 0
    assert len(read(path)) == 5


def test_import_refuses_a_file_cut_short(tmp_path, cli):
    path, file = make(tmp_path / "s.sqlite"), tmp_path / "new.jsonl.gz"
    whole = gzip.compress(
        b"\n".join(line(question=hashlib.sha256(bytes(i)).hexdigest()) for i in range(999))
    )
    for content in (
        whole[:-4],
        whole[: len(whole) // 2],
        b"no gzip",
        whole[:99] + b"\xff" * 99 + whole[198:],
    ):
        file.write_bytes(content)
        code, _, error = cli("import", file, "--into", path)
        assert code == 2 and f"{file}" in error and "nothing was imported" in error
        assert len(read(path)) == 1
    file.write_bytes(whole)
    assert cli("import", file, "--into", path)[0] == 0
    assert cli("import", tmp_path / "no.jsonl", "--into", path)[0] == 2


FAULTS = dict(
    [
        ("INSERT INTO answers VALUES (9, 'q', 'a')", "answers: an answer has no source"),
        (
            "UPDATE answers SET answer = CAST(x'ff' AS TEXT) WHERE question = 'q0'",
            "answers: a text is not UTF-8",
        ),
        (
            "UPDATE answers SET question = x'ff' WHERE question = 'q0' AND source = 1",
            "answers: a text is not UTF-8",
        ),
        ("UPDATE sources SET model = x'4d' WHERE id = 1", "sources: a text is not UTF-8"),
        (
            "UPDATE embeddings SET vector = x'0000803f' WHERE text = 'm'",
            "embeddings: a vector has 1 numbers, others of its encoder 4",
        ),
        (
            "UPDATE embeddings SET vector = x'00' WHERE text = 'm'",
            "embeddings: a vector is not made of float32 numbers",
        ),
        (
            "UPDATE embeddings SET vector = 'text' WHERE text = 'm'",
            "embeddings: a vector is not made of float32 numbers",
        ),
        (
            "UPDATE embeddings SET vector = x'0000c07f000000000000000000000000' WHERE text = 'm'",
            "embeddings: a vector is not finite",
        ),
        (
            "UPDATE embeddings SET vector = zeroblob(16) WHERE text = 'm'",
            "embeddings: a vector is not of unit length",
        ),
        ("CREATE INDEX other ON answers (answer)", "the tables are not those of the schema"),
    ]
)


@pytest.mark.parametrize("statement", FAULTS)
def test_verify_finds_each_fault(tmp_path, cli, statement):
    path = a_store(tmp_path / "s.sqlite")
    assert cli("verify", path)[0] == 0
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    content = path.read_bytes()
    code, out, _ = cli("verify", path)
    assert code == 1 and f"fault: {FAULTS[statement]} (" in out and "all is fine" not in out
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["s.sqlite"]


def test_verify_finds_keys_out_of_order(tmp_path, cli):
    path = a_store(tmp_path / "s.sqlite")
    path.write_bytes(path.read_bytes().replace(b"eeat cow", b"eEat cow", 1))
    code, out, _ = cli("verify", path)
    assert code == 1 and "index sqlite_autoindex_embeddings_1" in out


def test_what_cannot_be_read_as_text_is_damage(tmp_path):
    path = a_store(tmp_path / "s.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE answers SET answer = CAST(x'ff0a' AS TEXT) WHERE question = 'q0'"
        )
        connection.execute("UPDATE embeddings SET vector = x'00'")
    connection.close()
    with Store(path) as opened:
        for read_it in (
            lambda: opened.get_answers("M", "1", "{}", ["q0"]),
            lambda: opened.get_embeddings("e", ["q0"]),
        ):
            with pytest.raises(UserError, match="s.sqlite is damaged .* restore it") as caught:
                read_it()
            assert "\n" not in str(caught.value)


def test_inspect(tmp_path, cli):
    path = a_store(tmp_path / "s.sqlite")
    fill(path, [Answer("evil\x1b[2J\n", "3", "{}", "q", "\ud800" + "long" * 99)])
    code, out, _ = cli("inspect", path, "--show", 2)
    assert code == 0 and "\x1b" not in out and "\\u001b[2J" in out and out.isascii()
    assert out.count("  q0\n") == 4 and out.count("  q1\n") == 4 and "longl...\n" in out
    summary = json.loads(cli("inspect", path, "--json", "--show", 1)[1])
    assert [source["answers"] for source in summary["answers"]] == [3, 3, 3, 3, 1]
    assert summary["answers"][0]["shown"] == [["q0", "- eat cow\n- M"]]
    assert summary["embeddings"] == [{"encoder": "e", "embeddings": 4, "size": 4, "bytes": 64}]
    assert summary["bytes"] == path.stat().st_size


def test_prune_keeps_what_is_named(tmp_path, cli):
    path = a_store(tmp_path / "s.sqlite")
    content = path.read_bytes()
    code, out, _ = cli("prune", path, "--keep-model", "M", "--keep-prompt", "2", "--dry-run")
    assert code == 0 and "goes: 9 answers, 0 embeddings" in out and "goes: 3 answers: M 1 {}" in out
    for flag, name in (("--keep-model", "L"), ("--keep-prompt", "12")):
        code, _, error = cli("prune", path, flag, name, "--yes")
        assert code == 2 and f"no answers of {flag[7:]} {name}: it has" in error
    assert cli("prune", path, "--yes")[0] == 0  # nothing named: nothing goes
    assert path.read_bytes() == content
    assert cli("prune", path, "--keep-model", "M", "--keep-prompt", "2", "--yes")[0] == 0
    with Store(path) as pruned:
        assert pruned.sources() == [("M", "2", "{}")]
        assert pruned.count() == {"sources": 1, "answers": 3, "embeddings": 4}
    code, out, _ = cli("prune", path, "--drop-orphans", "--yes")
    assert code == 0 and "0 answers, 1 embeddings" in out
    assert {key[1] for key in read(path) if len(key) == 2} == {"q0", "eat cow", "m"}


def test_prune_shrinks_the_file_and_asks_first(tmp_path, cli, monkeypatch):
    path = make(tmp_path / "s.sqlite", {str(i): "long" * 99 for i in range(999)})
    fill(path, [Answer("kept", "h", "{}", "q", "a")])
    size = path.stat().st_size
    for answer in ("", "n", "no!"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert cli("prune", path, "--keep-model", "kept")[0] == 0
        assert len(read(path)) == 1000
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert cli("prune", path, "--keep-model", "kept")[0] == 0
    assert read(path) == {("kept", "h", "{}", "q"): "a"} and path.stat().st_size < size / 9

    def nobody(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    make(path)
    code, _, error = cli("prune", path, "--keep-model", "kept")
    assert code == 2 and "give --yes" in error and len(read(path)) == 2
    code, _, error = cli("prune", tmp_path / "no.sqlite", "--yes")
    assert code == 2 and not (tmp_path / "no.sqlite").exists()


def test_prune_knows_the_published_prompts(tmp_path, cli):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    names = {"toy_open_v2": "older", "toy_open_v10": "newest", "toy_rules_v2": "other form"}
    for stem, text in names.items():
        (prompts / f"{stem}.txt").write_text(text)
    (prompts / "README.md").write_text("")
    texts = (*names.values(), "unknown")
    hashes = {text: hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts}
    rows = [Answer("m", prompt, "{}", "q", "a") for prompt in hashes.values()]
    path = fill(tmp_path / "s.sqlite", rows)
    assert "toy_open_v10.txt" in cli("inspect", path, "--prompts", prompts)[1]
    for flag, gone in (("--drop-unknown-prompts", "unknown"), ("--drop-older-prompts", "older")):
        code, out, _ = cli("prune", path, flag, "--yes", "--prompts", prompts)
        assert code == 0 and "goes: 1 answers" in out
        with Store(path) as pruned:
            assert hashes.pop(gone) not in {prompt for _, prompt, _ in pruned.sources()}
    assert len(read(path)) == 2


def test_a_file_that_changes_while_it_is_read_without_locks(tmp_path):
    path = a_store(tmp_path / "s.sqlite")
    with Store(path, read_only=True) as reader:
        rows = reader.rows()
        next(rows)
        fill(path, [Answer(*SOURCE, "q", "a")])
        with pytest.raises(UserError, match="changed while it was read"):
            list(rows)
        assert len(list(reader.rows())) == 17


@pytest.mark.parametrize(
    "path",
    sorted(Path(store.__file__).parent.glob("recorded/*.sqlite")),
    ids=lambda path: path.stem,
)
def test_recorded_stores_are_fine_and_stay_as_they_are(path, cli):
    before, content = sorted(os.listdir(path.parent)), path.read_bytes()
    assert cli("verify", path)[0] == 0 and cli("inspect", path)[0] == 0
    assert sorted(os.listdir(path.parent)) == before and path.read_bytes() == content


def test_a_store_needs_no_heavy_packages():
    heavy = "{'jax', 'torch', 'tyro', 'transformers'}"
    code = f"import goals.store, sys; print(*{heavy} & set(sys.modules))"
    imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert imported.stdout.strip() == ""


@pytest.mark.parametrize("code", [sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_IOERR_SHMMAP])
def test_a_file_system_without_locks_is_told(monkeypatch, tmp_path, code):
    class WithoutLocks(sqlite3.Connection):
        def execute(self, statement, *parameters):
            if "WAL" in statement:
                error = sqlite3.OperationalError("locking protocol")
                error.sqlite_errorcode = code
                raise error
            return super().execute(statement, *parameters)

    Store(tmp_path / "old.sqlite").close()
    connect = partial(sqlite3.connect, factory=WithoutLocks)
    monkeypatch.setattr(sqlite3, "connect", connect)
    for name in ("old.sqlite", "new.sqlite"):
        with pytest.raises(UserError, match=r"locking protocol.*on a local disk \(--store\)"):
            Store(tmp_path / name)


def test_a_link_to_a_store_shows_what_is_being_written(tmp_path):
    link = tmp_path / "link.sqlite"
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real" / "store.sqlite")
    with Store(link) as writer:  # the file that it names is not there yet
        writer.put_answers("m", "p", "{}", {str(i): "a" for i in range(300)})
        with Store(link, read_only=True) as reader:
            assert reader.count()["answers"] == 300
    assert link.is_symlink() and (tmp_path / "real" / "store.sqlite").exists()


def test_a_store_that_nobody_closed_is_closed_when_it_goes(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    connection = store._connection
    del store
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
