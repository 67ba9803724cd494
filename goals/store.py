"""What was ever answered and embedded, in one SQLite file that several runs share.

Raw answers are kept and parsed when read, so a better parser needs no new query. Nothing is
overwritten: the first answer stays. `python -m goals.store_cli --help` shows what can be done with
a store from the command line.
"""

import itertools
import os
import sqlite3
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.errors import UserError

APPLICATION_ID = 0x454C4C4D  # "ELLM"
BUSY_SECONDS = 60.0
KEYS_PER_QUERY = 500
UNIT_TOLERANCE = 1e-3  # how far the length of an embedding may be from 1

# Statements by schema version: MIGRATIONS[k] leads from version k to k + 1. Published ones are
# never edited.
MIGRATIONS = (
    (
        "CREATE TABLE sources (id INTEGER PRIMARY KEY, model TEXT NOT NULL, prompt TEXT NOT NULL,"
        " parameters TEXT NOT NULL, UNIQUE (model, prompt, parameters))",
        "CREATE TABLE answers (source INTEGER NOT NULL REFERENCES sources (id),"
        " question TEXT NOT NULL,"
        " answer TEXT NOT NULL, PRIMARY KEY (source, question)) WITHOUT ROWID",
        "CREATE TABLE embeddings (encoder TEXT NOT NULL, text TEXT NOT NULL, vector BLOB NOT NULL,"
        " PRIMARY KEY (encoder, text))",
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)

RESTORE = "restore it from a copy, or move it away to start an empty store"
# What SQLite says where a file system has no locks, or is shared with other machines.
NO_LOCKS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_IOERR_LOCK}
NO_LOCKS |= {sqlite3.SQLITE_IOERR_RDLOCK, sqlite3.SQLITE_IOERR_UNLOCK}
NO_LOCKS |= {sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMLOCK}
NO_LOCKS |= {sqlite3.SQLITE_IOERR_SHMMAP, sqlite3.SQLITE_IOERR_SHMSIZE}
LOCAL_DISK = "another program holds it, or its file system has no locks: put it on a local disk"
LOCAL_DISK += " (--store)"


class Answer(NamedTuple):
    """A raw answer, and what it answers.

    model: its identity; prompt: its hash; parameters: as JSON.
    """

    model: str
    prompt: str
    parameters: str
    question: str
    answer: str


class Embedding(NamedTuple):
    """An embedding float32 [E], and what it embeds."""

    encoder: str
    text: str
    vector: np.ndarray


class Store:
    """Keep answers by (model, prompt, parameters, question) and embeddings by (encoder, text).

    Any number of processes of one machine may read and write one file at once; a Store belongs to
    the thread that opened it. The file must be on a local disk: SQLite's log cannot be shared over
    a network. A missing file is created with its folders, unless `read_only`, which never writes
    into or beside the file and sees what others add. Raises UserError, the file untouched, when it
    is not a store, is torn or locked, or was written by a newer schema.
    """

    def __init__(self, path: str | os.PathLike, read_only: bool = False):
        self.path = Path(path).resolve()  # beside which SQLite keeps its log
        self.read_only = read_only
        if not read_only:
            _create(self.path)
        _check_header(self.path)
        with self._explained():
            self._open(check=True)

    def get_answers(
        self, model: str, prompt: str, parameters: str, questions: Iterable[str]
    ) -> dict[str, str]:
        """Return the raw answers there are, keyed by question."""
        with self._explained():
            query = "SELECT id FROM sources WHERE model = ? AND prompt = ? AND parameters = ?"
            key = (to_column(model), to_column(prompt), to_column(parameters))
            source = self._current().execute(query, key).fetchone()
            if source is None:
                return {}
            rows = self._select(
                "SELECT question, answer FROM answers WHERE source = ? AND question",
                source[0],
                questions,
            )
            return {from_column(question): from_column(answer) for question, answer in rows}

    def put_answers(
        self, model: str, prompt: str, parameters: str, answers: Mapping[str, str]
    ) -> None:
        """Add raw answers, keyed by question, in one transaction; the first one stays."""
        self.add(
            Answer(model, prompt, parameters, question, answer)
            for question, answer in answers.items()
        )

    def get_embeddings(self, encoder: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the embeddings there are, keyed by text: float32 [E] each."""
        with self._explained():
            rows = self._select(
                "SELECT text, vector FROM embeddings WHERE encoder = ? AND text",
                to_column(encoder),
                texts,
            )
            return {from_column(text): _vector(vector) for text, vector in rows}

    def put_embeddings(self, encoder: str, embeddings: Mapping[str, np.ndarray]) -> None:
        """Add embeddings, keyed by text, float32 [E], in one transaction; the first one stays."""
        self.add(Embedding(encoder, text, vector) for text, vector in embeddings.items())

    def rows(self) -> Iterator[Answer | Embedding]:
        """Read all answers, then all embeddings, each kind in the order of its keys."""
        with self._reading() as connection:
            columns = "model, prompt, parameters, question"
            query = f"SELECT {columns}, answer FROM answers JOIN sources ON id = source"
            for row in connection.execute(f"{query} ORDER BY {columns}"):
                yield Answer(*map(from_column, row))
            for *key, vector in connection.execute(
                "SELECT encoder, text, vector FROM embeddings ORDER BY encoder, text"
            ):
                yield Embedding(*map(from_column, key), _vector(vector))

    def add(self, rows: Iterable[Answer | Embedding]) -> dict[str, Counter[str]]:
        """Add rows in one transaction; what is there stays.

        Return for "answers" and "embeddings" how many were "new", "known", or "conflicting": known
        with another value.
        """
        counts = {"answers": Counter(), "embeddings": Counter()}
        sources: dict[tuple, int] = {}
        with self._explained(), self._transaction() as connection:
            for row in rows:
                if isinstance(row, Answer):
                    source = row[:3]
                    if source not in sources:
                        sources[source] = _source_number(connection, source)
                    table, names = "answers", ("source", "question", "answer")
                    values = (sources[source], to_column(row.question), to_column(row.answer))
                else:
                    table, names = "embeddings", ("encoder", "text", "vector")
                    values = (
                        to_column(row.encoder),
                        to_column(row.text),
                        np.asarray(row.vector, "<f4").tobytes(),
                    )
                insert = f"INSERT INTO {table} ({', '.join(names)}) VALUES (?, ?, ?)"
                if connection.execute(f"{insert} ON CONFLICT DO NOTHING", values).rowcount:
                    counts[table]["new"] += 1
                    continue
                select = f"SELECT {names[2]} FROM {table} WHERE {names[0]} = ? AND {names[1]} = ?"
                (there,) = connection.execute(select, values[:2]).fetchone()
                counts[table]["known" if there == values[2] else "conflicting"] += 1
        return counts

    def remove(
        self,
        sources: Iterable[tuple[str, str, str]] = (),
        embeddings: Iterable[tuple[str, str]] = (),
        answers: Iterable[tuple[str, str, str, str]] = (),
    ) -> None:
        """Delete all answers of sources, embeddings, and single answers; shrink the file.

        sources: (model, prompt, parameters) each; embeddings: (encoder, text); answers: (model,
        prompt, parameters, question).
        """
        with self._explained():
            with self._transaction() as connection:
                numbers = [(_source_number(connection, source),) for source in sources]
                connection.executemany("DELETE FROM answers WHERE source = ?", numbers)
                connection.executemany("DELETE FROM sources WHERE id = ?", numbers)
                keys = [
                    (_source_number(connection, source), to_column(question))
                    for *source, question in answers
                ]
                connection.executemany(
                    "DELETE FROM answers WHERE source = ? AND question = ?", keys
                )
                connection.execute(
                    "DELETE FROM sources WHERE id NOT IN (SELECT source FROM answers)"
                )
                keys = [tuple(map(to_column, key)) for key in embeddings]
                connection.executemany(
                    "DELETE FROM embeddings WHERE encoder = ? AND text = ?", keys
                )
            self._connection.execute("VACUUM")

    def pack(self) -> None:
        """Make the file small and its log unnecessary, to be shipped; nobody else may use it."""
        with self._explained():
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA journal_mode = DELETE")

    def verify(self) -> tuple[dict[str, tuple[int, int]], Counter[str]]:
        """Check all there is to check.

        Returns for each table how many rows there are and are fine, and all faults, counted. Looks
        at SQLite's own structures, the schema, the answers' sources, the encoding of texts, and
        whether the vectors of an encoder are of one size, finite and of unit length.
        """
        rows, faults = {}, Counter()
        with self._reading() as connection, _snapshot(connection):
            faults.update(
                message
                for (message,) in connection.execute("PRAGMA integrity_check")
                if message != "ok"
            )
            with closing(sqlite3.connect(":memory:", isolation_level=None)) as new:
                _migrate(new)
                if _schema(connection) != _schema(new):
                    faults["the tables are not those of the schema"] += 1
            for table, checked in _checked_rows(connection):
                found = Counter(checked)
                rows[table] = (found.total(), found.pop(None, 0))
                faults.update({f"{table}: {fault}": number for fault, number in found.items()})
        return rows, faults

    def count(self) -> dict[str, int]:
        """Return the number of rows of each table: sources, answers, embeddings."""
        with self._explained():
            connection = self._current()
            tables = ("sources", "answers", "embeddings")
            return {
                table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in tables
            }

    def sources(self) -> list[tuple[str, str, str]]:
        """Return the model, prompt and parameters of all answers here, sorted."""
        with self._explained():
            query = (
                "SELECT model, prompt, parameters FROM sources ORDER BY model, prompt, parameters"
            )
            return [tuple(map(from_column, source)) for source in self._current().execute(query)]

    def models(self) -> list[str]:
        """Return the names of the models whose answers are here, sorted."""
        return list(dict.fromkeys(model for model, _, _ in self.sources()))

    def encoders(self) -> dict[str, int]:
        """Return the size E of the embeddings of each encoder, by its name, sorted."""
        with self._explained():
            query = "SELECT encoder, max(length(vector)) / 4 FROM embeddings GROUP BY 1 ORDER BY 1"
            return {from_column(encoder): size for encoder, size in self._current().execute(query)}

    def close(self) -> None:
        """Let go of the file; closing twice does no harm."""
        self._connection.close()

    def __del__(self) -> None:
        # For one that nobody closed, as where what would have owned it could not be made.
        with suppress(AttributeError, sqlite3.ProgrammingError):
            self._connection.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _open(self, check: bool = False) -> None:
        if self.read_only:
            # A file at rest is read as immutable: no locks, no side files. Else a writer's log is
            # read too.
            self._rest = self._wait_for_index()
            options = "mode=ro&immutable=1" if self._rest else "mode=ro&readonly_shm=1"
        else:
            options = "mode=rw"
        self._connection = sqlite3.connect(
            f"{self.path.as_uri()}?{options}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
        )
        try:
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise UserError(_newer(self.path, version))
            if version < SCHEMA_VERSION and self.read_only:
                raise UserError(
                    f"store {self.path} has the older schema {version}: open it once for writing"
                )
            if check and self._connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise UserError(f"store {self.path} is damaged: {RESTORE}")
            if not self.read_only:
                self._connection.execute("PRAGMA journal_mode = WAL")
            if version < SCHEMA_VERSION:
                with self._transaction() as connection:
                    _migrate(connection)
        except BaseException:
            self._connection.close()
            raise

    def _wait_for_index(self) -> tuple[int, ...] | None:
        """Return the file's signature; None if a log with its index is there.

        Both end with a writer.
        """
        for _ in range(10):
            rest = _signature(self.path)
            if rest or Path(f"{self.path}-shm").exists():
                return rest
            time.sleep(0.05)
        raise UserError(
            f"store {self.path} has a log (-wal) that nobody merged: open it once for writing"
        )

    def _current(self) -> sqlite3.Connection:
        # An immutable connection takes no locks: once the file has changed, open it anew.
        if self.read_only and self._rest and self._rest != _signature(self.path):
            self._connection.close()
            self._open()
        return self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self.read_only:
            raise UserError(
                f"store {self.path} is open for reading only: open it without read_only"
            )
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for reading much.

        Raises UserError if a file that is read without locks has changed meanwhile.
        """
        with self._explained():
            connection = self._current()
            rest = self.read_only and self._rest
            try:
                yield connection
            finally:
                if rest and rest != _state(self.path):
                    raise UserError(
                        f"store {self.path} was changed while it was read: run this again"
                    )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            reason = " ".join(str(error).split())[:100]
            # The general code, or none at all, stands for what is in the file, the others for what
            # is around it.
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            if isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
                advice = "check who uses the file, its permissions and the space left"
                advice = LOCAL_DISK if code in NO_LOCKS else advice
                raise UserError(f"store {self.path}: {reason}: {advice}") from error
            raise UserError(f"store {self.path} is damaged ({reason}): {RESTORE}") from error

    def _select(self, query: str, first: object, texts: Iterable[str]) -> Iterator[tuple]:
        connection = self._current()
        keys = iter(dict.fromkeys(texts))
        while chunk := [to_column(text) for text in itertools.islice(keys, KEYS_PER_QUERY)]:
            yield from connection.execute(
                f"{query} IN ({','.join('?' * len(chunk))})", (first, *chunk)
            ).fetchall()


def to_column(text: str) -> str | bytes:
    """Return a text as the store holds it; with lone surrogates, which UTF-8 has not, as bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def from_column(value: str | bytes) -> str:
    """Return the text that `to_column` made a value of; raise sqlite3.DataError if it made none."""
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8", "surrogatepass")
    except (AttributeError, UnicodeDecodeError):
        raise sqlite3.DataError("a text is not UTF-8") from None


def vector_fault(vector: np.ndarray, size: int) -> str | None:
    """Say what is wrong with an embedding that should have `size` numbers; None: nothing."""
    if len(vector) != size:
        return f"a vector has {len(vector)} numbers, others of its encoder {size}"
    if not np.isfinite(vector).all():
        return "a vector is not finite"
    if abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) > UNIT_TOLERANCE:
        return "a vector is not of unit length"
    return None


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; what is there at the end becomes `path` in one piece.

    Nothing is written over. Raises OSError, and FileExistsError if there is something at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        new = Path(folder) / path.name
        yield new
        os.link(new, path)


def _vector(value: bytes) -> np.ndarray:
    if not isinstance(value, bytes) or len(value) % 4:
        raise sqlite3.DataError("a vector is not made of float32 numbers")
    return np.frombuffer(value, "<f4").astype(np.float32)


def _source_number(connection: sqlite3.Connection, source: tuple[str, str, str]) -> int:
    """Return the number of a source (model, prompt, parameters), which is added if it is new."""
    key = tuple(map(to_column, source))
    connection.execute(
        "INSERT INTO sources (model, prompt, parameters) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        key,
    )
    query = "SELECT id FROM sources WHERE model = ? AND prompt = ? AND parameters = ?"
    return connection.execute(query, key).fetchone()[0]


def _schema(connection: sqlite3.Connection) -> list[tuple]:
    return connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"
    ).fetchall()


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Read one state of a store; a text that is not UTF-8 is read with surrogates."""
    connection.execute("BEGIN")
    connection.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        connection.text_factory = str
        connection.execute("ROLLBACK")


def _checked_rows(connection: sqlite3.Connection) -> Iterator[tuple[str, Iterator[str | None]]]:
    """Give the tables and what is wrong with each of their rows, None for nothing."""
    sources = connection.execute("SELECT model, prompt, parameters FROM sources")
    yield "sources", (_text_fault(source) for source in sources)
    answers = connection.execute(
        "SELECT id, question, answer FROM answers LEFT JOIN sources ON id = source"
    )
    yield (
        "answers",
        (
            "an answer has no source" if id_ is None else _text_fault(texts)
            for id_, *texts in answers
        ),
    )
    # The most frequent size of an encoder is the last, and stays.
    query = "SELECT encoder, length(vector) / 4 FROM embeddings GROUP BY 1, 2 ORDER BY count(*)"
    sizes = dict(connection.execute(query).fetchall())
    embeddings = connection.execute("SELECT encoder, text, vector FROM embeddings")
    yield (
        "embeddings",
        (_text_fault(key) or _vector_fault(vector, sizes[key[0]]) for *key, vector in embeddings),
    )


def _text_fault(values: Iterable[object]) -> str | None:
    try:
        return (
            None
            if all(to_column(from_column(value)) == value for value in values)
            else "a text is not UTF-8"
        )
    except sqlite3.DataError as error:
        return str(error)


def _vector_fault(value: object, size: int) -> str | None:
    try:
        return vector_fault(_vector(value), size)
    except sqlite3.DataError as error:
        return str(error)


def _newer(path: Path, version: int) -> str:
    return (
        f"store {path} has schema {version}, this program knows up to {SCHEMA_VERSION}: "
        "update the program, or give another file with --store"
    )


def _signature(path: Path) -> tuple[int, ...] | None:
    """Return what tells states of a file at rest apart; None while a log holds part of it."""
    with suppress(FileNotFoundError):  # it goes with the last writer
        if Path(f"{path}-wal").stat().st_size:
            return None
    return _state(path)


def _state(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _check_header(path: Path) -> None:
    """Refuse a file that is not ours by its bytes, before SQLite could write to it or beside it."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise UserError(f"store {path} does not exist: give the path of a recorded store") from None
    except OSError as error:
        raise UserError(
            f"store {path} cannot be read ({error.strerror}): give another path"
        ) from error
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise UserError(f"store {path} is not an SQLite file: {RESTORE}")
    (page_size,) = struct.unpack_from(">H", header, 16)
    version, application = struct.unpack_from(">i4xi", header, 60)
    if application != APPLICATION_ID:
        raise UserError(f"store {path} is another program's database: give another path")
    if version > SCHEMA_VERSION:
        raise UserError(_newer(path, version))
    # SQLite would read a page cut short as if it ended in zeros.
    if page_size == 1:  # SQLite's way to write 65536 in 16 bits
        page_size = 65536
    if version < 1 or page_size < 512 or (size % page_size and _signature(path)):
        raise UserError(f"store {path} is torn: {RESTORE}")


def _create(path: Path) -> None:
    """Put an empty store where there is nothing; of several processes that try, one wins."""
    if path.exists():
        return
    try:
        # Made aside and linked in whole: nobody ever sees half a store, and none is overwritten.
        with (
            new_file(path) as new,
            closing(sqlite3.connect(new, isolation_level=None)) as connection,
        ):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("BEGIN IMMEDIATE")
            _migrate(connection)
            connection.execute("COMMIT")
    except FileExistsError:
        if not path.exists():
            raise UserError(
                f"store {path}: {path.parent} is not a folder: give another path"
            ) from None
    except (OSError, sqlite3.OperationalError) as error:
        without_locks = getattr(error, "sqlite_errorcode", None) in NO_LOCKS
        advice = LOCAL_DISK if without_locks else "give another path (--store)"
        raise UserError(f"store {path} cannot be created ({error}): {advice}") from error


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date inside the caller's transaction.

    Another process may just have done it.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number in range(version, SCHEMA_VERSION):
        for statement in MIGRATIONS[number]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
