"""A SQLite ledger with as many finished refunds as wanted, made by bulk SQL.

The gate makes the file and its first record; every further row is a copy of that record with its own
number in place of the first one's. So the rows are what this version of the gate writes, whatever its
columns are. Only ever used while no gate has the file open.
"""

import hashlib
import json
import os
import sqlite3
import sys
import time

DAY = 86_400 * 10**6
WEEK = 7 * DAY
# How long ago the oldest was finished: none is past its time.
SPAN = 300 * DAY
CHUNK = 50_000
# Record n is the refund of number FIRST + n: all keys are of one length, and apart from those of a load.
FIRST = 10**15


class Filled:
    """A filled file: its folder's ranges of record ids that are done and still there."""

    def __init__(self, folder):
        self.database = folder / "tikigate.db"
        self.notes = folder / "filled.json"
        self.ranges = json.loads(self.notes.read_text()) if self.notes.exists() else []

    def count(self):
        return sum(end - start for start, end in self.ranges)

    def number(self, random):
        """The number of any of its refunds."""
        place = random.randrange(self.count())
        for start, end in self.ranges:
            if place < end - start:
                return FIRST + start + place
            place -= end - start
        raise AssertionError("beyond the last")

    def save(self):
        self.notes.write_text(json.dumps(self.ranges))

    def fill(self, wanted, say):
        """Adds records until there are so many. The file has at least one done refund."""
        missing = wanted - self.count()
        if missing <= 0:
            return
        database = open_alone(self.database)
        template = newest(database)
        first = database.execute("SELECT next_record FROM meta").fetchone()[0]
        began = time.time()
        rows = Rows(template, first, missing)
        for start in range(first, first + missing, CHUNK):
            end = min(start + CHUNK, first + missing)
            database.execute("BEGIN")
            database.executemany(insert("records", template), map(rows.row, range(start, end)))
            database.execute("UPDATE meta SET done = done + ?, next_record = ?", (end - start, end))
            database.execute("COMMIT")
            if (end - first) % 1_000_000 == 0:
                say(f"{end - first:,} of {missing:,} records in {time.time() - began:.0f} s")
        close_alone(database, self.database)
        self.ranges.append([first, first + missing])
        self.save()

    def expire(self, count):
        """Moves the expiry of its oldest records into the past; how many."""
        count = min(count, self.count())
        database = open_alone(self.database)
        left, ranges = count, []
        past = int(time.time() * 10**6) - DAY
        database.execute("BEGIN")
        for start, end in self.ranges:
            taken = min(left, end - start)
            database.execute("UPDATE records SET expires_at = ? + id WHERE id >= ? AND id < ?", (past, start, start + taken))
            left -= taken
            if start + taken < end:
                ranges.append([start + taken, end])
        database.execute("COMMIT")
        close_alone(database, self.database)
        self.ranges = ranges
        self.save()
        return count

    def expired(self):
        """How many of its records are past their time."""
        database = open_alone(self.database)
        past = "SELECT count(*) FROM records WHERE state = 'done' AND expires_at <= ?"
        count = database.execute(past, (int(time.time() * 10**6),)).fetchone()[0]
        close_alone(database, self.database)
        return count


class Rows:
    """Rows like a template's, each with a number of its own."""

    def __init__(self, template, first, count):
        self.columns = list(template)
        self.template = list(template.values())
        self.place = {name: place for place, name in enumerate(template)}
        self.old = template["message"].removeprefix("r-")
        self.began = int(time.time() * 10**6) - SPAN
        self.first, self.step = first, SPAN // count
        self.took = template["updated_at"] - template["created_at"]
        self.keep = template["expires_at"] - template["updated_at"]
        self.texts = [self.place[name] for name in ("fields", "subject") if template[name] is not None]
        assert self.fingerprint(self.old) == template["fingerprint"], "the gate's fingerprints have changed"
        assert first_bytes(template["message"]) == template["message_hash"], "the gate's hashes have changed"

    def row(self, record):
        number = str(FIRST + record)
        place = self.place
        row = self.template.copy()
        created = self.began + (record - self.first) * self.step
        row[place["id"]] = record
        row[place["message"]] = message = "r-" + number
        row[place["message_hash"]] = first_bytes(message)
        row[place["fingerprint"]] = self.fingerprint(number)
        row[place["created_at"]] = created
        row[place["updated_at"]] = created + self.took
        row[place["may_run_until"]] = created + DAY
        row[place["expires_at"]] = created + self.took + self.keep
        for text in self.texts:
            row[text] = row[text].replace(self.old, number)
        if row[place["subject"]] is not None:
            row[place["subject_week"]] = (created + self.took) // WEEK
            row[place["subject_hash"]] = first_bytes(row[place["subject"]])
        return row

    @staticmethod
    def fingerprint(number):
        """As in src/tiki/key.rs, of the calls that common.request makes."""
        text = b"tikigate fingerprint 1\0"
        for place, (tag, value) in enumerate(((1, f"t-{number}"), (1, f"p-{number}"), (2, "150000"))):
            text += place.to_bytes(8, "big") + bytes([tag]) + len(value).to_bytes(8, "big") + value.encode()
        return hashlib.sha256(text).digest()


def first_bytes(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def newest(database):
    """The row that the others are copies of."""
    database.row_factory = sqlite3.Row
    row = database.execute("SELECT * FROM records WHERE state = 'done' ORDER BY id DESC LIMIT 1").fetchone()
    database.row_factory = None
    if row["listed"] or database.execute("SELECT EXISTS (SELECT 1 FROM answers)").fetchone()[0]:
        sys.exit("the filled file is of a version that listed answers: let this one make it anew, in another folder")
    return dict(row)


def insert(table, row):
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"


def open_alone(path):
    """Fast and not durable: for a file that is made anew if this goes wrong."""
    database = sqlite3.connect(path, isolation_level=None)
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = DELETE", "journal_mode = OFF", "synchronous = OFF",
                   "cache_size = -4000000"):
        database.execute(f"PRAGMA {pragma}").fetchall()
    return database


def close_alone(database, path):
    database.execute("PRAGMA journal_mode = WAL").fetchall()
    database.close()
    # Left over from the way between the modes, and empty.
    path.with_name(path.name + "-journal").unlink(missing_ok=True)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
