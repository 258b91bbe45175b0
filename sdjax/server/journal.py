"""What was accepted, and what came of it, in SQLite: a killed server goes on, and pictures can be fetched by id."""

import io
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sdjax.pipeline.hints import Hint
from sdjax.server.nets import Nets
from sdjax.server.refusals import Refused
from sdjax.server.work import Form, Job, Result
from sdjax.settings import SETTINGS, Picture

TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, client TEXT NOT NULL, model TEXT NOT NULL, came REAL NOT NULL, form TEXT NOT NULL,
    count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pictures (
    job TEXT NOT NULL, number INTEGER NOT NULL, settings TEXT NOT NULL, images TEXT NOT NULL,
    PRIMARY KEY (job, number));
CREATE TABLE IF NOT EXISTS images (job TEXT NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (job, number));
CREATE TABLE IF NOT EXISTS results (
    job TEXT NOT NULL, number INTEGER NOT NULL, came REAL NOT NULL, reason TEXT, data BLOB, settings TEXT,
    PRIMARY KEY (job, number));
"""
HINTS = "conditions"
IMAGES = [name for name, setting in SETTINGS.items() if setting.kind == "image"]
DEFAULTS = {field.name: field.default for field in fields(Picture)}


class KeptHint(NamedTuple):
    """A `Hint` without its net, of which only the name is kept."""

    net: str
    image: Any
    scale: Any
    start: float
    end: float
    mode: str
    fit: str
    mask: Any
    annotator: str = ""
    kind: str | None = None

    @classmethod
    def of(cls, hint: Hint) -> "KeptHint":
        """What is kept of a hint."""
        return cls(hint.net.name, *(getattr(hint, name) for name in cls._fields[1:]))

    def opened(self, nets: Nets) -> Hint:
        """The hint. Raises Refused where its net may not be asked for any more."""
        return Hint(nets.open(self.net), *self[1:])


class Kept(NamedTuple):
    """A job that was accepted: what is left of it to draw, by number, and how many pictures it has.

    The conditions of pictures are each a `KeptHint`.
    """

    id: str
    client: str
    model: str
    came: float
    form: Form
    total: int
    pictures: Mapping[int, Picture]


class Journal:
    """Jobs and results, in a file, or in memory alone where the path is ":memory:".

    seconds, most_bytes: how long results are kept, and how much of them; the oldest go first.
    For any number of threads. Raises Refused where the disk is full, or the file cannot be written.
    """

    def __init__(self, path: str | Path = ":memory:", seconds: float = 3600.0, most_bytes: int = 2**30):
        self._lock = threading.Lock()
        self._seconds, self._most = seconds, most_bytes
        self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._base.execute("PRAGMA locking_mode = EXCLUSIVE")  # of one server
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = NORMAL")
        self._base.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._base.executescript(TABLES)

    def accept(self, job: Job) -> None:
        """Write a job down, all of it or nothing. Raises Refused for one whose id is taken."""
        images: dict[int, tuple[int, str, bytes]] = {}

        def number_of(image: Any) -> int | None:
            if image is None:
                return None
            if id(image) not in images:
                images[id(image)] = (len(images), *_packed(image))
            return images[id(image)][0]

        rows = []
        for unit in job.units:
            used = {name: number_of(getattr(unit.picture, name)) for name in IMAGES}
            hints = [KeptHint.of(hint) for hint in unit.picture.conditions]
            said = _said(unit.picture) | {
                HINTS: [hint._replace(image=number_of(hint.image), mask=number_of(hint.mask)) for hint in hints]
            }
            rows.append((job.id, unit.index, json.dumps(said), json.dumps(used)))
        model = job.units[0].group.model
        head = (job.id, job.client, model, job.came, json.dumps(job.form), len(job.units))
        try:
            with self._transaction() as base:
                base.execute("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)", head)
                base.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?)", rows)
                base.executemany(
                    "INSERT INTO images VALUES (?, ?, ?, ?)", [(job.id, *each) for each in images.values()]
                )
        except sqlite3.IntegrityError:
            raise Refused(f"there is a job {job.id!r} already", 409, "id") from None

    def keep(self, job: str, number: int, result: Result) -> None:
        """Write down what became of a picture."""
        self._end(job, number, None, result.data, json.dumps(result.settings))

    def fail(self, job: str, number: int, reason: str) -> None:
        """Write down why there is no picture."""
        self._end(job, number, reason, None, None)

    def find(self, job: str) -> dict[str, Any] | None:
        """What is known of a job: {"id", "created", "model", "count", "results": {number: settings or reason}}."""
        with self._lock:
            head = self._base.execute("SELECT came, model, count FROM jobs WHERE id = ?", (job,)).fetchone()
            if head is None:
                return None
            ends = self._base.execute("SELECT number, reason, settings FROM results WHERE job = ?", (job,)).fetchall()
        results = {number: reason if settings is None else json.loads(settings) for number, reason, settings in ends}
        return {"id": job, "created": head[0], "model": head[1], "count": head[2], "results": results}

    def result(self, job: str, number: int) -> Result | str | None:
        """A picture that is kept, or why there is none, or None where nothing is known of it."""
        query = (
            "SELECT reason, data, settings, form FROM results JOIN jobs ON jobs.id = job WHERE job = ? AND number = ?"
        )
        with self._lock:
            found = self._base.execute(query, (job, number)).fetchone()
        if found is None:
            return None
        reason, data, settings, form = found
        return reason if data is None else Result(data, Form(*json.loads(form)), json.loads(settings))

    def picture(self, job: str, number: int) -> Picture | None:
        """A picture as it was asked for, with its images, or None where nothing is known of it."""
        query = "SELECT settings, images FROM pictures WHERE job = ? AND number = ?"
        with self._lock:
            found = self._base.execute(query, (job, number)).fetchone()
            blobs = self._base.execute("SELECT number, kind, data FROM images WHERE job = ?", (job,)).fetchall()
        return found and _picture(found[0], found[1], {number: _unpacked(kind, data) for number, kind, data in blobs})

    def left(self) -> Iterator[Kept]:
        """The jobs that are not done, in the order in which they came."""
        with self._lock:
            heads = self._base.execute("SELECT id, client, model, came, form, count FROM jobs ORDER BY came").fetchall()
        for job, client, model, came, form, count in heads:
            query = (
                "SELECT number, settings, images FROM pictures WHERE job = ? AND number NOT IN "
                "(SELECT number FROM results WHERE results.job = pictures.job)"
            )
            with self._lock:
                rows = self._base.execute(query, (job,)).fetchall()
                blobs = self._base.execute("SELECT number, kind, data FROM images WHERE job = ?", (job,)).fetchall()
            if rows:
                images = {number: _unpacked(kind, data) for number, kind, data in blobs}
                pictures = {number: _picture(settings, used, images) for number, settings, used in rows}
                yield Kept(job, client, model, came, Form(*json.loads(form)), count, pictures)

    def sweep(self) -> None:
        """Let go what has been kept for long enough, and the oldest results beyond the size."""
        limit = time.time() - self._seconds
        done = "(SELECT COUNT(*) FROM results WHERE results.job = jobs.id) = jobs.count"
        with self._transaction() as base:
            old = [job for (job,) in base.execute(f"SELECT id FROM jobs WHERE came < ? AND {done}", (limit,))]
            total = base.execute("SELECT COALESCE(SUM(LENGTH(data)), 0) FROM results").fetchone()[0]
            query = (
                "SELECT jobs.id, COALESCE(SUM(LENGTH(data)), 0) FROM jobs JOIN results ON results.job = jobs.id "
                f"WHERE {done} GROUP BY jobs.id ORDER BY jobs.came"
            )
            for job, size in base.execute(query).fetchall() if total > self._most else ():
                if total <= self._most:
                    break
                total, old = total - size, [*old, job]
            for table, column in (("jobs", "id"), ("pictures", "job"), ("images", "job"), ("results", "job")):
                base.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(job,) for job in old])
        with self._lock:
            self._base.execute("PRAGMA incremental_vacuum").fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def _end(self, job: str, number: int, reason: str | None, data: bytes | None, settings: str | None) -> None:
        with self._transaction() as base:
            row = (job, number, time.time(), reason, data, settings)
            base.execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?)", row)

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._base, self._lock)


class _Transaction:
    """All that is written inside, or nothing."""

    def __init__(self, base: sqlite3.Connection, lock: threading.Lock):
        self._base, self._lock = base, lock

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        self._base.execute("BEGIN IMMEDIATE")
        return self._base

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            if self._base.in_transaction:  # which a full disk ends
                self._base.execute("ROLLBACK" if error else "COMMIT")
        except sqlite3.OperationalError as full:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise Refused(f"the journal cannot be written: {full}", 503, retry_after=60) from full
        finally:
            self._lock.release()
        if isinstance(error, sqlite3.OperationalError):
            raise Refused(f"the journal cannot be written: {error}", 503, retry_after=60) from error


def _said(picture: Picture) -> dict[str, Any]:
    """The settings that are not the defaults, without images and hints."""
    values = {name: getattr(picture, name) for name in SETTINGS if name not in (*IMAGES, HINTS)}
    return {name: value for name, value in values.items() if name == "prompt" or value != DEFAULTS[name]}


def _picture(settings: str, used: str, images: Mapping[int | None, Any]) -> Picture:
    said: dict[str, Any] = json.loads(settings)
    hints = [KeptHint(*each) for each in said.pop(HINTS, ())]
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    said[HINTS] = tuple(hint._replace(image=images.get(hint.image), mask=images.get(hint.mask)) for hint in hints)
    said |= {name: images.get(number) for name, number in json.loads(used).items()}
    return Picture(**said)


def _packed(image: Any) -> tuple[str, bytes]:
    """A picture, or an array, as bytes that give it back to the bit."""
    file = io.BytesIO()
    if isinstance(image, np.ndarray):
        np.save(file, image, allow_pickle=False)
        return "npy", file.getvalue()
    image.save(file, "PNG", compress_level=1)
    return "png", file.getvalue()


def _unpacked(kind: str, data: bytes) -> Any:
    if kind == "npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
