"""What was ever answered and embedded, in one SQLite file that several runs share.

Raw answers are kept and parsed when read, so a better parser needs no new query. Nothing is overwritten: the
first answer stays.
"""

import itertools
import os
import sqlite3
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from lab.errors import UserError

APPLICATION_ID = 0x454C4C4D  # "ELLM"
BUSY_SECONDS = 60.0
KEYS_PER_QUERY = 500

# Statements by schema version: MIGRATIONS[k] leads from version k to k + 1. Published ones are never edited.
MIGRATIONS = (
    (
        "CREATE TABLE sources (id INTEGER PRIMARY KEY, model TEXT NOT NULL, prompt TEXT NOT NULL,"
        " parameters TEXT NOT NULL, UNIQUE (model, prompt, parameters))",
        "CREATE TABLE answers (source INTEGER NOT NULL REFERENCES sources (id), question TEXT NOT NULL,"
        " answer TEXT NOT NULL, PRIMARY KEY (source, question)) WITHOUT ROWID",
        "CREATE TABLE embeddings (encoder TEXT NOT NULL, text TEXT NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (encoder, text))",
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)

RESTORE = "restore it from a copy, or move it away to start an empty store"


class Store:
    """Keep answers by (model, prompt, parameters, question) and embeddings by (encoder, text).

    Any number of processes may read and write one file at once; a Store belongs to the thread that opened it.
    A missing file is created with its folders, unless `read_only`, which never writes into or beside the file
    and sees what others add. Raises UserError, the file untouched, when it is not a store, is torn or locked,
    or was written by a newer schema.
    """

    def __init__(self, path: str | os.PathLike, read_only: bool = False):
        self.path = Path(path).absolute()
        self.read_only = read_only
        if not read_only:
            _create(self.path)
        _check_header(self.path)
        with self._explained():
            self._open(check=True)

    def get_answers(self, model: str, prompt: str, parameters: str, questions: Iterable[str]) -> dict[str, str]:
        """Return the raw answers there are, keyed by question."""
        with self._explained():
            query = "SELECT id FROM sources WHERE model = ? AND prompt = ? AND parameters = ?"
            key = (_bind(model), _bind(prompt), _bind(parameters))
            source = self._current().execute(query, key).fetchone()
            if source is None:
                return {}
            rows = self._select("SELECT question, answer FROM answers WHERE source = ? AND question", source[0], questions)
            return {_text(question): _text(answer) for question, answer in rows}

    def put_answers(self, model: str, prompt: str, parameters: str, answers: Mapping[str, str]) -> None:
        """Add raw answers, keyed by question, in one transaction; a question that has an answer keeps it."""
        with self._explained(), self._transaction() as connection:
            source = (_bind(model), _bind(prompt), _bind(parameters))
            connection.execute(
                "INSERT INTO sources (model, prompt, parameters) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                source,
            )
            where = "model = ? AND prompt = ? AND parameters = ?"
            (number,) = connection.execute(f"SELECT id FROM sources WHERE {where}", source).fetchone()
            connection.executemany(
                "INSERT INTO answers (source, question, answer) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                [(number, _bind(question), _bind(answer)) for question, answer in answers.items()],
            )

    def get_embeddings(self, encoder: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the embeddings there are, keyed by text: float32 [E] each."""
        with self._explained():
            rows = self._select("SELECT text, vector FROM embeddings WHERE encoder = ? AND text", _bind(encoder), texts)
            return {_text(text): np.frombuffer(vector, "<f4").astype(np.float32) for text, vector in rows}

    def put_embeddings(self, encoder: str, embeddings: Mapping[str, np.ndarray]) -> None:
        """Add embeddings, keyed by text, float32 [E] each, in one transaction; the first one stays."""
        rows = [(_bind(encoder), _bind(text), np.asarray(v, "<f4").tobytes()) for text, v in embeddings.items()]
        with self._explained(), self._transaction() as connection:
            connection.executemany("INSERT INTO embeddings (encoder, text, vector) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", rows)

    def count(self) -> dict[str, int]:
        """Return the number of rows of each table: sources, answers, embeddings."""
        with self._explained():
            connection = self._current()
            tables = ("sources", "answers", "embeddings")
            return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}

    def models(self) -> list[str]:
        """Return the names of the models whose answers are here, sorted."""
        with self._explained():
            query = "SELECT DISTINCT model FROM sources ORDER BY model"
            return [_text(model) for (model,) in self._current().execute(query)]

    def close(self) -> None:
        """Let go of the file; closing twice does no harm."""
        self._connection.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _open(self, check: bool = False) -> None:
        if self.read_only:
            # A file at rest is read as immutable: no locks, no side files. Else a writer's log is read too.
            self._rest = self._wait_for_index()
            options = "mode=ro&immutable=1" if self._rest else "mode=ro&readonly_shm=1"
        else:
            options = "mode=rw"
        self._connection = sqlite3.connect(f"{self.path.as_uri()}?{options}", uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise UserError(_newer(self.path, version))
            if version < SCHEMA_VERSION and self.read_only:
                raise UserError(f"store {self.path} has the older schema {version}: open it once for writing")
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
        """Return the file's signature, None if a log with its index is there (both end with a writer)."""
        for _ in range(10):
            rest = _signature(self.path)
            if rest or Path(f"{self.path}-shm").exists():
                return rest
            time.sleep(0.05)
        raise UserError(f"store {self.path} has a log (-wal) that nobody merged: open it once for writing")

    def _current(self) -> sqlite3.Connection:
        # An immutable connection takes no locks: once the file has changed, open it anew.
        if self.read_only and self._rest and self._rest != _signature(self.path):
            self._connection.close()
            self._open()
        return self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self.read_only:
            raise UserError(f"store {self.path} is open for reading only: open it without read_only")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.OperationalError as error:
            raise UserError(f"store {self.path}: {error}: check who uses the file, its permissions and the space left") from error
        except sqlite3.DatabaseError as error:
            raise UserError(f"store {self.path} is damaged ({error}): {RESTORE}") from error

    def _select(self, query: str, first: object, texts: Iterable[str]) -> Iterator[tuple]:
        connection = self._current()
        keys = iter(dict.fromkeys(texts))
        while chunk := [_bind(text) for text in itertools.islice(keys, KEYS_PER_QUERY)]:
            yield from connection.execute(f"{query} IN ({','.join('?' * len(chunk))})", (first, *chunk))


def _bind(text: str) -> str | bytes:
    # UTF-8 has no lone surrogates: a text with one is kept as bytes in the same column, a key of its own.
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")


def _newer(path: Path, version: int) -> str:
    return (
        f"store {path} has schema {version}, this program knows up to {SCHEMA_VERSION}: "
        "update the program, or give another file with --store"
    )


def _signature(path: Path) -> tuple[int, ...] | None:
    """Return what tells states of a file at rest apart; None while a write-ahead log holds part of it."""
    log = Path(f"{path}-wal")
    if log.exists() and log.stat().st_size:
        return None
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _check_header(path: Path) -> None:
    """Refuse a file that is not ours from its bytes alone, before SQLite could write to it or beside it."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise UserError(f"store {path} does not exist: give the path of a recorded store") from None
    except OSError as error:
        raise UserError(f"store {path} cannot be read ({error.strerror}): give another path") from error
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
    if page_size < 512 or (size % page_size and _signature(path)):
        raise UserError(f"store {path} is torn: {RESTORE}")


def _create(path: Path) -> None:
    """Put an empty store where there is nothing; of several processes that try at once, one wins."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made aside and linked in whole: nobody ever sees half a store, and none is overwritten.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            new = Path(folder) / path.name
            with closing(sqlite3.connect(new, isolation_level=None)) as connection:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("BEGIN IMMEDIATE")
                _migrate(connection)
                connection.execute("COMMIT")
            os.link(new, path)
    except FileExistsError:
        if not path.exists():
            raise UserError(f"store {path}: {path.parent} is not a folder: give another path") from None
    except (OSError, sqlite3.OperationalError) as error:
        raise UserError(f"store {path} cannot be created ({error}): give another path") from error


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date inside the caller's transaction; another process may just have done it."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number in range(version, SCHEMA_VERSION):
        for statement in MIGRATIONS[number]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
