"""Conversations kept on this disk, for this user only: SQLite with a write-ahead log, every finished turn committed."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localai import kept_states, settings
from localai.domain.generation import Message
from localai.errors import LocalaiError, NotFound, UsageError

TITLE_LENGTH = 60
LAST = "last"

_TABLES = """
CREATE TABLE IF NOT EXISTS session (
    id INTEGER PRIMARY KEY AUTOINCREMENT, started_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    model TEXT NOT NULL, title TEXT NOT NULL, system TEXT);
CREATE TABLE IF NOT EXISTS message (
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    role TEXT NOT NULL, content TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS message_session ON message (session);
"""
_SEARCH = """
CREATE VIRTUAL TABLE IF NOT EXISTS message_text USING fts5 (content, content='message', content_rowid='id');
CREATE TRIGGER IF NOT EXISTS message_added AFTER INSERT ON message BEGIN
    INSERT INTO message_text (rowid, content) VALUES (new.id, new.content); END;
CREATE TRIGGER IF NOT EXISTS message_removed AFTER DELETE ON message BEGIN
    INSERT INTO message_text (message_text, rowid, content) VALUES ('delete', old.id, old.content); END;
"""


@dataclass(frozen=True, slots=True)
class Session:
    """A kept conversation; `turns` counts its questions, `title` is how the first one begins."""

    id: int
    started_at: str
    updated_at: str
    model: str
    title: str
    system: str | None
    turns: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that a search found, with some text around what was looked for."""

    session: Session
    role: str
    excerpt: str


def database() -> Path:
    """The file that holds the conversations."""
    return settings.folders().data / "sessions" / "sessions.db"


@contextlib.contextmanager
def _open(reading: bool = False) -> Iterator[sqlite3.Connection]:
    """The database, made where there is none, in one transaction; where it is for `reading`, also on a disk that is
    full or read-only. Raises LocalaiError for one that cannot be used.
    """
    path = database()
    try:
        try:
            connection = _writable_database(path)
        except (sqlite3.Error, OSError):
            if not reading or (unwritten := _unwritten_database(path)) is None:
                raise
            connection = unwritten
        with contextlib.closing(connection), connection:
            yield connection
    except (sqlite3.Error, OSError) as error:
        raise LocalaiError(
            f"cannot use the kept conversations in {path}: {error}",
            "check its disk and permissions; once it is moved away, a new one takes its place",
        ) from error


def _writable_database(path: Path) -> sqlite3.Connection:
    """Raises OSError, sqlite3.Error."""
    settings.private_folder(path.parent)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)  # before SQLite makes it by the umask
    try:
        if os.name == "posix" and os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    connection = sqlite3.connect(path, timeout=10)
    try:
        connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;")
        connection.executescript("PRAGMA secure_delete=ON;" + _TABLES)
        with contextlib.suppress(sqlite3.OperationalError):  # an SQLite without FTS5: the search is by LIKE
            connection.executescript(_SEARCH)
    except BaseException:
        connection.close()
        raise
    return connection


def _unwritten_database(path: Path) -> sqlite3.Connection | None:
    """The database as it lies there, nothing written beside it; None where its log has the latest."""
    log = path.with_name(f"{path.name}-wal")
    if not path.exists() or (log.exists() and log.stat().st_size):
        return None
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def ask(session: int | None, model: str, system: str | None, question: str) -> int:
    """Keep a question before it is answered, so that no end of the program loses it; `keep` takes its place.

    With None, or a session that was removed meanwhile, a new one begins. Returns its id. Raises LocalaiError.
    """
    with _open() as connection:
        session = _begun(connection, session, model, system, question)
        _forget_unanswered(connection, session)
        connection.execute(_MESSAGE, (session, "user", _writable(question)))
    return session


def unask(session: int) -> bool:
    """Forget a question that was not answered, and the conversation with its only one; whether there is still one.

    Raises LocalaiError.
    """
    with _open() as connection:
        _forget_unanswered(connection, session)
        return _is_left(connection, session)


def keep(
    session: int | None, model: str, system: str | None, question: str, answer: str, *, instead_of: str | None = None
) -> int:
    """Keep a finished turn, in place of the last one with the question `instead_of`; with no session, or one that was
    removed meanwhile, a new one begins. Returns the session's id. Raises LocalaiError.
    """
    with _open() as connection:
        session = _begun(connection, session, model, system, question)
        _forget_unanswered(connection, session)
        if instead_of is not None:
            _take_back(connection, session, instead_of)
        turn = ((session, "user", _writable(question)), (session, "assistant", _writable(answer)))
        connection.executemany(_MESSAGE, turn)
    if instead_of is not None:  # what was said before is in the state
        with contextlib.suppress(LocalaiError):
            kept_states.remove(session)
    return session


def take_back(session: int, question: str) -> bool:
    """Forget the last turn with this question, and the conversation with its only one; whether there is still one.

    Another chat may have gone on with the same conversation meanwhile: its turns stay. Raises LocalaiError.
    """
    with _open() as connection:
        _forget_unanswered(connection, session)
        _take_back(connection, session, question)
        left = _is_left(connection, session)
    kept_states.remove(session)
    return left


_MESSAGE = "INSERT INTO message (session, role, content) VALUES (?, ?, ?)"


def _begun(connection: sqlite3.Connection, session: int | None, model: str, system: str | None, question: str) -> int:
    """The session, noted to be used now; a new one where there is none."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    model, system = _writable(model), None if system is None else _writable(system)
    if session is not None:
        changed = connection.execute(
            "UPDATE session SET updated_at = ?, model = ?, system = ? WHERE id = ?", (now, model, system, session)
        )
        if changed.rowcount:
            return session
    title = " ".join(_writable(question[:500]).split())[:TITLE_LENGTH].strip()
    made = connection.execute(
        "INSERT INTO session (started_at, updated_at, model, title, system) VALUES (?, ?, ?, ?, ?)",
        (now, now, model, title, system),
    )
    return int(made.lastrowid or 0)


def _forget_unanswered(connection: sqlite3.Connection, session: int) -> None:
    answered = "SELECT coalesce(max(id), 0) FROM message WHERE session = :session AND role = 'assistant'"
    connection.execute(
        f"DELETE FROM message WHERE session = :session AND id > ({answered})",
        {"session": session},
    )


def _is_left(connection: sqlite3.Connection, session: int) -> bool:
    """Whether there is a session; one without any message is removed."""
    if connection.execute("SELECT 1 FROM message WHERE session = ?", (session,)).fetchone():
        return True
    connection.execute("DELETE FROM session WHERE id = ?", (session,))
    return False


def _take_back(connection: sqlite3.Connection, session: int, question: str) -> None:
    asked = "SELECT max(id) FROM message WHERE session = :session AND role = 'user' AND content = :question"
    connection.execute(
        "DELETE FROM message WHERE id IN"
        f" (SELECT id FROM message WHERE session = :session AND id >= ({asked}) ORDER BY id LIMIT 2)",
        {"session": session, "question": _writable(question)},
    )


def rename(session: int, title: str) -> None:
    """Give a kept conversation a name of the user's, by which it is found. Raises LocalaiError."""
    with _open() as connection:
        connection.execute("UPDATE session SET title = ? WHERE id = ?", (_writable(title), session))


def _writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no UTF-8


_COLUMNS = """SELECT session.id, started_at, updated_at, model, title, system,
    (SELECT count(*) FROM message WHERE message.session = session.id AND role = 'user') FROM session"""


def every() -> tuple[Session, ...]:
    """All kept conversations, the latest first. Raises LocalaiError."""
    if not database().exists():
        return ()
    with _open(reading=True) as connection:
        rows = connection.execute(f"{_COLUMNS} ORDER BY updated_at DESC, id DESC").fetchall()
    return tuple(Session(*row) for row in rows)


def exists(session: int) -> bool:
    """Whether a conversation is kept, and was not removed meanwhile. Raises LocalaiError."""
    return any(each.id == session for each in every())


def find(name: str) -> Session:
    """The conversation of that id, the latest of that title, the latest for "last". Raises NotFound, LocalaiError."""
    found = every()
    for each in found:
        if name in (LAST, str(each.id)):
            return each
    for each in found:
        if name.strip() and name.casefold() == each.title.casefold():
            return each
    hint = "localai sessions list shows them" if found else "localai chat keeps what is said, without --private"
    raise NotFound(f"there is no kept conversation {name[:100]!r}", hint)


def messages(session: Session) -> tuple[Message, ...]:
    """What was said in it, in order, without the system text; the last question may not have been answered.

    Raises LocalaiError.
    """
    with _open(reading=True) as connection:
        query = "SELECT role, content FROM message WHERE session = ? ORDER BY id"
        return tuple(Message(*row) for row in connection.execute(query, (session.id,)))


def answered(said: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages without a last question that was not answered."""
    return said[:-1] if len(said) % 2 and said[-1].role == "user" else said


def search(words: str, limit: int = 50) -> tuple[Hit, ...]:
    """The messages that hold all of the words, whole or else as parts of others, the latest first.

    Raises LocalaiError.
    """
    wanted = words.replace("\0", " ").split()
    if not wanted or not database().exists():
        return ()
    with _open(reading=True) as connection:
        # Chinese and Japanese have no spaces, so that a sentence is one word of the index
        rows = _matches(connection, wanted, limit) or _containing(connection, wanted, limit)
    by_id = {each.id: each for each in every()}
    return tuple(Hit(by_id[number], role, excerpt) for number, role, excerpt in rows if number in by_id)


def _matches(connection: sqlite3.Connection, words: Sequence[str], limit: int) -> list[tuple[int, str, str]]:
    """Those that the index finds; none where this SQLite has no FTS5."""
    quoted = " ".join('"' + word.replace('"', '""') + '"' for word in words)
    with contextlib.suppress(sqlite3.OperationalError):
        return connection.execute(
            "SELECT session, role, snippet(message_text, 0, '', '', '...', 16) FROM message_text"
            " JOIN message ON message.id = message_text.rowid"
            " WHERE message_text MATCH ? ORDER BY message.id DESC LIMIT ?",
            (quoted, limit),
        ).fetchall()
    return []


def _containing(connection: sqlite3.Connection, words: Sequence[str], limit: int) -> list[tuple[int, str, str]]:
    """Those that have the words anywhere."""
    connection.create_function("folded", 1, str.casefold)  # SQLite's own knows ASCII alone
    wanted = [word.casefold() for word in words]
    condition = " AND ".join("instr(folded(content), ?)" for _ in wanted)
    around = "substr(content, max(1, instr(folded(content), ?) - 40), 160)"
    query = f"SELECT session, role, {around} FROM message WHERE {condition} ORDER BY id DESC LIMIT ?"
    return connection.execute(query, (wanted[0], *wanted, limit)).fetchall()


def remove(session: Session) -> None:
    """Remove a conversation, its bytes overwritten in the file, and its saved state. Raises LocalaiError."""
    kept_states.remove(session.id)
    with _open() as connection:
        connection.execute("DELETE FROM message WHERE session = ?", (session.id,))
        connection.execute("DELETE FROM session WHERE id = ?", (session.id,))
        connection.commit()
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("INSERT INTO message_text (message_text) VALUES ('optimize')")
            connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def as_json(session: Session, said: Sequence[Message]) -> dict[str, Any]:
    """A conversation as its JSON export has it."""
    return {**asdict(session), "messages": [{"role": each.role, "content": each.content} for each in said]}


def from_json(text: str, where: str) -> tuple[str | None, tuple[Message, ...]]:
    """The system text and the turns of a JSON export, without a question that was not answered.

    Raises UsageError for what is none.
    """
    try:
        raw = json.loads(text)
        said = tuple(Message(str(each["role"]), str(each["content"])) for each in raw["messages"])
        system = raw.get("system")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f"{where} is not a conversation that was exported as JSON", _EXPORTED) from error
    said = answered(said)
    if [each.role for each in said] != ["user", "assistant"] * (len(said) // 2):
        raise UsageError(f"{where} does not hold questions and answers in turn", _EXPORTED)
    return (system if isinstance(system, str) and system else None), said


_EXPORTED = "/save NAME.json writes one, and so does localai sessions export --format json"


def markdown(session: Session, said: Sequence[Message]) -> str:
    """A conversation as Markdown."""
    parts = [f"# {session.title}", f"{session.model}, {session.started_at}"]
    if session.system:
        parts.append(f"## system\n\n{session.system}")
    return "\n\n".join([*parts, *(f"## {each.role}\n\n{each.content}" for each in said)]) + "\n"
