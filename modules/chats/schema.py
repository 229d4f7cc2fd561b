"""The tables of the chat history, and the steps from each version of them to the next."""

from __future__ import annotations

import sqlite3

from modules.errors import Unavailable

MIGRATIONS = (
    # 1: chats are trees of messages; the search index holds every message that is not being written at the moment
    """
    CREATE TABLE chats (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        owner TEXT NOT NULL,
        title TEXT NOT NULL DEFAULT '',
        titled INTEGER NOT NULL DEFAULT 0,
        pinned INTEGER NOT NULL DEFAULT 0,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        deleted REAL,
        leaf INTEGER,
        settings TEXT NOT NULL DEFAULT '{}',
        revision INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX chats_of_owner ON chats (owner, updated);
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        chat_id INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
        parent_id INTEGER REFERENCES messages (id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant', 'tool')),
        content TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('streaming', 'whole', 'cut')),
        model TEXT,
        sampling TEXT NOT NULL DEFAULT '{}',
        figures TEXT NOT NULL DEFAULT '{}',
        extra TEXT NOT NULL DEFAULT '{}',
        created REAL NOT NULL,
        changed REAL NOT NULL,
        deleted REAL
    );
    CREATE INDEX messages_of_chat ON messages (chat_id, parent_id);
    CREATE INDEX messages_streaming ON messages (id) WHERE state = 'streaming';
    CREATE TABLE preferences (
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (owner, name)
    ) WITHOUT ROWID;
    CREATE VIRTUAL TABLE message_index USING fts5(content, content='messages', content_rowid='id', tokenize='trigram');
    CREATE TRIGGER index_new AFTER INSERT ON messages WHEN new.state <> 'streaming' BEGIN
        INSERT INTO message_index (rowid, content) VALUES (new.id, new.content);
    END;
    CREATE TRIGGER index_gone AFTER DELETE ON messages WHEN old.state <> 'streaming' BEGIN
        INSERT INTO message_index (message_index, rowid, content) VALUES ('delete', old.id, old.content);
    END;
    CREATE TRIGGER index_before AFTER UPDATE OF content, state ON messages WHEN old.state <> 'streaming' BEGIN
        INSERT INTO message_index (message_index, rowid, content) VALUES ('delete', old.id, old.content);
    END;
    CREATE TRIGGER index_after AFTER UPDATE OF content, state ON messages WHEN new.state <> 'streaming' BEGIN
        INSERT INTO message_index (rowid, content) VALUES (new.id, new.content);
    END;
    """,
    # 2: the tokens of replies with their probabilities, in pieces as they came (chats/token_data.py)
    """
    CREATE TABLE message_tokens (
        id INTEGER PRIMARY KEY,
        message_id INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
        at INTEGER NOT NULL,
        data BLOB NOT NULL
    );
    CREATE INDEX tokens_of_message ON message_tokens (message_id, id);
    """,
    # 3: pictures that people attach; a message names them in extra.pictures
    """
    CREATE TABLE pictures (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        owner TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        kind TEXT NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        data BLOB NOT NULL,
        thumbnail BLOB NOT NULL,
        created REAL NOT NULL
    );
    CREATE UNIQUE INDEX pictures_of_owner ON pictures (owner, sha256);
    """,
)


def migrate(db: sqlite3.Connection) -> None:
    """Bring the database to the newest version, each step whole or not at all. Raises Unavailable for one from the future."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise Unavailable(
            "The chat history was written by a newer version of Textloom. Update, or choose another folder with --data-dir."
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")
