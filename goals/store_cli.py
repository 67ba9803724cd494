"""What can be done with a store from the command line: `python -m goals.store_cli COMMAND`.

    python -m goals.store_cli inspect runs/store.sqlite --show 3
    python -m goals.store_cli merge other.sqlite --into runs/store.sqlite
    python -m goals.store_cli export runs/store.sqlite answers.jsonl.gz
    python -m goals.store_cli import answers.jsonl.gz --into runs/store.sqlite
    python -m goals.store_cli verify runs/store.sqlite
    python -m goals.store_cli prune runs/store.sqlite --drop-unknown-prompts --dry-run
    python -m goals.store_cli prune runs/store.sqlite --drop-unusable MODEL

A line of JSONL is one object: an answer {"model", "prompt", "parameters", "question", "answer"} or
an embedding {"encoder", "text", "vector"}, its vector float32 numbers, little endian, in base64. A
text with lone surrogates, which UTF-8 has not, is {"base64": its bytes}.
"""

import base64
import dataclasses
import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from goals.forms import is_answer
from goals.open_ended import parse_goals
from goals.prompts import PROMPTS, prompt_hashes
from goals.store import SCHEMA_VERSION, Answer, Embedding, Store, new_file, to_column, vector_fault
from lab.cli import run_cli
from lab.errors import UserError
from lab.ranges import CountOrNone, Ranged

FIELDS = {frozenset(kind._fields): kind for kind in (Answer, Embedding)}
SHOWN_LENGTH = 160  # characters of a question or answer that are shown


@dataclasses.dataclass(frozen=True)
class Inspect(Ranged):
    """Say what a store holds: models, prompts, parameters, encoders, how much of each."""

    store: tyro.conf.Positional[Path]
    """the store"""
    show: CountOrNone = 0
    """show so many questions of each source with their answers, evenly spread"""
    json: bool = False
    """print one JSON object"""
    prompts: Path = PROMPTS
    """folder of the published prompts"""

    def run(self) -> None:
        """Print the summary."""
        with Store(self.store, read_only=True) as store:
            summary = summarise(store, self.show, self.prompts)
        print(json.dumps(summary) if self.json else "\n".join(_describe(summary)))


@dataclasses.dataclass(frozen=True)
class Merge:
    """Add the answers and embeddings of stores to another store, where what is there stays."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """the stores to read"""
    into: Path
    """the store to write; a new one if it is not there"""

    def run(self) -> None:
        """Merge one source after the other, each in one transaction."""
        if not self.sources:
            raise UserError("name the stores to merge before --into")
        with ExitStack() as stack:
            sources = [stack.enter_context(Store(path, read_only=True)) for path in self.sources]
            target = stack.enter_context(Store(self.into))
            for source in sources:
                _report(source.path, target.add(source.rows()))


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a store to a new file: .jsonl or .jsonl.gz to read, .sqlite to ship as recorded."""

    store: tyro.conf.Positional[Path]
    """the store to read"""
    file: tyro.conf.Positional[Path]
    """the file to write"""
    model: tuple[str, ...] = ()
    """only answers of these models; default: of all"""
    prompt: tuple[str, ...] = ()
    """only answers to prompts of these hashes; default: to all"""

    def run(self) -> None:
        """Write the file in one piece; equal stores give equal files."""
        kinds = {".jsonl": write_jsonl, ".jsonl.gz": write_jsonl, ".sqlite": write_store}
        write = next(
            (write for suffix, write in kinds.items() if self.file.name.endswith(suffix)), None
        )
        if write is None:
            raise UserError(f"{self.file} must end in {', '.join(kinds)}: give another path")
        if self.file.exists():
            raise UserError(f"{self.file} exists: give another path, or move it away")
        with Store(self.store, read_only=True) as store:
            _check_names(store, self.model, self.prompt)
            rows = (
                row
                for row in store.rows()
                if isinstance(row, Embedding) or _chosen(row, self.model, self.prompt)
            )
            try:
                with new_file(self.file) as new:
                    written = write(new, rows)
            except OSError as error:
                raise UserError(
                    f"{self.file} cannot be written ({error.strerror}): give another path"
                ) from error
        print(
            f"{self.file}: {_amount(written[Answer], written[Embedding])}, "
            f"{self.file.stat().st_size:,} bytes"
        )


@dataclasses.dataclass(frozen=True)
class Import:
    """Add what a .jsonl or .jsonl.gz file holds to a store, where what is there stays.

    One bad line, and nothing is added.
    """

    file: tyro.conf.Positional[Path]
    """the file to read"""
    into: Path
    """the store to write; a new one if it is not there"""

    def run(self) -> None:
        """Import the file in one transaction."""
        with Store(self.into) as store:
            _report(self.file, store.add(read_jsonl(self.file, store.encoders())))


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check a store; exit code 0: all is fine, 1: there are faults, 2: it cannot be opened."""

    store: tyro.conf.Positional[Path]
    """the store"""

    def run(self) -> None:
        """Print how many rows are fine and what is not."""
        with Store(self.store, read_only=True) as store:
            rows, faults = store.verify()
        for table, (number, fine) in rows.items():
            print(f"{table:<10} {number:>10,} rows, {fine:,} fine")
        for fault, number in faults.items():
            print(f"fault: {fault} ({number:,} times)")
        print(f"{self.store}: {'faults found' if faults else 'all is fine'}")
        if faults:
            sys.exit(1)


@dataclasses.dataclass(frozen=True)
class Prune:
    """Delete from a store what is not kept, after a question.

    An answer goes if any option lets it go.
    """

    store: tyro.conf.Positional[Path]
    """the store"""
    keep_model: tuple[str, ...] = ()
    """delete the answers of other models"""
    keep_prompt: tuple[str, ...] = ()
    """delete the answers to prompts of other hashes"""
    drop_unknown_prompts: bool = False
    """delete the answers to prompts that are not in --prompts"""
    drop_older_prompts: bool = False
    """delete the answers to prompts of which --prompts has a later version"""
    drop_unusable: tuple[str, ...] = ()
    """delete the answers of these models that no goals can be read from, so that they are asked
    for anew"""
    drop_orphans: bool = False
    """delete the embeddings of texts that are not in a remaining question, nor a goal in its
    answer; runs compute them anew"""
    yes: bool = False
    """do not ask"""
    dry_run: bool = False
    """only say what would go"""
    prompts: Path = PROMPTS
    """folder of the published prompts"""

    def run(self) -> None:
        """Say what goes, ask, delete it in one transaction, and shrink the file."""
        with Store(self.store, read_only=True) as store:
            _check_names(store, (*self.keep_model, *self.drop_unusable), self.keep_prompt)
            sources, orphans, unusable = self._choose(store)
        for source, number in sources.items():
            print(f"goes: {number:,} answers: {' '.join(map(_shown, source))}")
        for source, number in Counter(key[:3] for key in unusable).items():
            print(f"goes: {number:,} unusable answers: {' '.join(map(_shown, source))}")
        print(f"goes: {_amount(sources.total() + len(unusable), len(orphans))}")
        if self.dry_run or not (sources or orphans or unusable):
            return
        if self.yes or _confirmed(f"delete them from {self.store}? [y/N] "):
            with Store(self.store) as store:
                store.remove(sources, orphans, unusable)
            print(f"{self.store}: {self.store.stat().st_size:,} bytes")

    def _choose(self, store: Store) -> tuple[Counter[tuple], list[tuple], list[tuple]]:
        """Return what to delete.

        That is sources with their numbers of answers, keys of embeddings and of single answers.
        """
        versions = prompt_hashes(self.prompts)
        published = set(versions.values())
        older = {
            versions[form, k]
            for form, k in versions
            if any(form == other and k < last for other, last in versions)
        }
        sources, orphans, unusable, texts = Counter(), [], [], set()
        for row in store.rows():
            if isinstance(row, Embedding):
                if self.drop_orphans and row.text not in texts:
                    orphans.append(row[:2])
            elif (
                not _chosen(row, self.keep_model, self.keep_prompt)
                or (self.drop_unknown_prompts and row.prompt not in published)
                or (self.drop_older_prompts and row.prompt in older)
            ):
                sources[row[:3]] += 1
            elif row.model in self.drop_unusable and not is_usable(row):
                unusable.append(row[:4])
            elif self.drop_orphans:
                texts |= {row.question, *row.question.split(": "), *parse_goals(row.answer)}
        return sources, orphans, unusable


def summarise(store: Store, show: int = 0, prompts: Path = PROMPTS) -> dict[str, Any]:
    """Return what a store holds, as JSON values, with `show` questions of each source."""
    versions = prompt_hashes(prompts).items()
    files = {prompt: f"{form}_v{version}.txt" for (form, version), prompt in versions}
    answers, embeddings = [], []
    for (kind, *key), rows in groupby(store.rows(), lambda row: (type(row), *row[:-2])):
        if kind is Embedding:
            sizes = [len(row.vector) for row in rows]
            embeddings.append(
                {
                    "encoder": key[0],
                    "embeddings": len(sizes),
                    "size": max(sizes),
                    "bytes": 4 * sum(sizes),
                }
            )
            continue
        pairs = [(row.question, row.answer) for row in rows]
        source = dict(zip(Answer._fields, key, strict=False)) | {
            "file": files.get(key[1]),
            "answers": len(pairs),
        }
        source["bytes"] = sum(
            len(text.encode("utf-8", "surrogatepass")) for pair in pairs for text in pair
        )
        source["shown"] = pairs[:: max(1, len(pairs) // max(show, 1))][:show]
        answers.append(source)
    size = store.path.stat().st_size
    return {
        "path": str(store.path),
        "schema": SCHEMA_VERSION,
        "bytes": size,
        "answers": answers,
        "embeddings": embeddings,
    }


def is_usable(row: Answer) -> bool:
    """Return whether goals can be read from an answer; True where its parameters are no JSON."""
    try:
        parameters = json.loads(row.parameters)
    except ValueError:
        return True
    return not isinstance(parameters, dict) or is_answer(parameters, row.answer)


def write_store(path: Path, rows: Iterable[Answer | Embedding]) -> Counter[type]:
    """Write rows, sorted, as a new store without a log; return how many of each kind."""
    with Store(path) as store:
        counts = store.add(rows)
        store.pack()
    return Counter({Answer: counts["answers"]["new"], Embedding: counts["embeddings"]["new"]})


def write_jsonl(path: Path, rows: Iterable[Answer | Embedding]) -> Counter[type]:
    """Write a row a line, compressed if the path ends in .gz; return how many of each kind."""
    written = Counter()
    with ExitStack() as stack:
        file = stack.enter_context(path.open("wb"))
        if path.suffix == ".gz":
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        for row in rows:
            fields = row._asdict()
            vector = fields.pop("vector", None)
            values = {name: to_column(text) for name, text in fields.items()}
            values = {
                name: {"base64": _base64(value)} if isinstance(value, bytes) else value
                for name, value in values.items()
            }
            if vector is not None:
                values["vector"] = _base64(vector.astype("<f4").tobytes())
            file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
            written[type(row)] += 1
    return written


def read_jsonl(path: Path, sizes: Mapping[str, int]) -> Iterator[Answer | Embedding]:
    """Read what `write_jsonl` wrote; `sizes` are those of known encoders.

    Raises UserError at the first bad line.
    """
    sizes = dict(sizes)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = _parse(line, sizes)
                except ValueError as error:
                    advice = "fix the line or take it out; nothing was imported"
                    raise UserError(f"{path} line {number}: {error}: {advice}") from error
                yield row
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be read ({reason}): give another file; nothing was imported"
        ) from error


def _parse(line: bytes, sizes: dict[str, int]) -> Answer | Embedding:
    """Read a line, and note the size of a new encoder's embeddings.

    Raises ValueError if anything is wrong with it.
    """
    try:
        fields = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ValueError("this is not JSON in UTF-8") from None
    kind = FIELDS.get(frozenset(fields)) if isinstance(fields, dict) else None
    if kind is None:
        raise ValueError(
            "an object with "
            f"{' or '.join(', '.join(kind._fields) for kind in FIELDS.values())} is expected"
        )
    vector = fields.pop("vector", None)
    texts = {name: _parse_text(name, value) for name, value in fields.items()}
    if kind is Answer:
        return Answer(**texts)
    try:
        vector = np.frombuffer(base64.b64decode(vector, validate=True), "<f4")
    except (TypeError, ValueError):
        raise ValueError("the vector is not float32 numbers in base64") from None
    fault = vector_fault(vector, sizes.setdefault(texts["encoder"], len(vector)))
    if fault:
        raise ValueError(fault)
    return Embedding(**texts, vector=vector)


def _parse_text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return base64.b64decode(value["base64"], validate=True).decode("utf-8", "surrogatepass")
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"the {name} is not a text") from None


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _chosen(row: Answer, models: Collection[str], prompts: Collection[str]) -> bool:
    return (not models or row.model in models) and (not prompts or row.prompt in prompts)


def _check_names(store: Store, models: Collection[str], prompts: Collection[str]) -> None:
    """Raise UserError for a model or prompt of which there is no answer: most likely a slip."""
    for asked, column, word in ((models, 0, "model"), (prompts, 1, "prompt")):
        there = sorted({source[column] for source in store.sources()})
        for name in asked:
            if name not in there:
                raise UserError(
                    f"{store.path} has no answers of {word} {name}: "
                    f"it has {', '.join(there) or 'none'}"
                )


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        raise UserError("nobody is there to confirm: give --yes") from None


def _describe(summary: dict[str, Any]) -> Iterator[str]:
    """Give the lines that show a summary to people."""
    yield f"{summary['path']}: schema {summary['schema']}, {summary['bytes']:,} bytes"
    sources = [
        (
            f"{s['answers']:,}",
            f"{s['bytes']:,}",
            s["prompt"],
            s["file"] or "-",
            s["parameters"],
            s["model"],
        )
        for s in summary["answers"]
    ]
    yield from _table(("answers", "bytes", "prompt", "in prompts/", "parameters", "model"), sources)
    encoders = [
        (f"{e['embeddings']:,}", f"{e['bytes']:,}", str(e["size"]), e["encoder"])
        for e in summary["embeddings"]
    ]
    yield from _table(("embeddings", "bytes", "size", "encoder"), encoders)
    for source in summary["answers"]:
        for question, answer in source["shown"]:
            yield f"\n{_shown(source['model'])} {_shown(source['prompt'])}"
            yield f"  {_shown(question)}\n  -> {_shown(answer)}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    rows = [head, *(tuple(map(_shown, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield ""
    for row in rows:
        yield "  ".join(
            f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)
        ).rstrip()


def _shown(text: str) -> str:
    """Make a text fit for a terminal: one line without control characters, not too long."""
    text = text if text.isprintable() else json.dumps(text)
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."


def _amount(answers: int, embeddings: int) -> str:
    return f"{answers:,} answers, {embeddings:,} embeddings"


def _report(source: Path, counts: dict[str, Counter[str]]) -> None:
    for kind, number in counts.items():
        kept = " (what was there stays)" if number["conflicting"] else ""
        print(
            f"{source}: {kind}: {number['new']:,} new, {number['known']:,} known, "
            f"{number['conflicting']:,} conflicting{kept}"
        )


def main() -> None:
    """Run the command line."""
    run_cli(lambda command: command.run(), Inspect | Merge | Export | Import | Verify | Prune)


if __name__ == "__main__":
    main()
