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
    # 4: what the list of chats is read from, however many there are: its order, what tells that it has changed, and an index of
    # titles beside that of messages. Two line ends behind each text make its last letters the beginning of a trigram too: then
    # a word of one or two letters, as most Chinese ones are, begins terms of the index (message_terms, title_terms). What a
    # change takes out of the index comes before what it puts in: two triggers were run the other way round.
    """
    CREATE INDEX chats_in_order ON chats (owner, pinned, updated, id) WHERE deleted IS NULL;
    CREATE TABLE chat_lists (owner TEXT NOT NULL PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TRIGGER list_grown AFTER INSERT ON chats BEGIN
        INSERT INTO chat_lists VALUES (new.owner, 1) ON CONFLICT (owner) DO UPDATE SET revision = revision + 1;
    END;
    CREATE TRIGGER list_changed AFTER UPDATE ON chats BEGIN
        INSERT INTO chat_lists VALUES (new.owner, 1) ON CONFLICT (owner) DO UPDATE SET revision = revision + 1;
    END;
    DROP TRIGGER index_new;
    DROP TRIGGER index_gone;
    DROP TRIGGER index_before;
    DROP TRIGGER index_after;
    DROP TABLE message_index;
    CREATE VIEW searched AS SELECT id, content || char(10, 10) AS content FROM messages WHERE state <> 'streaming';
    CREATE VIRTUAL TABLE message_index USING fts5(content, content='searched', content_rowid='id', tokenize='trigram');
    CREATE VIRTUAL TABLE message_terms USING fts5vocab('message_index', 'instance');
    INSERT INTO message_index (message_index) VALUES ('rebuild');
    CREATE VIEW searched_titles AS SELECT id, title || char(10, 10) AS title FROM chats;
    CREATE VIRTUAL TABLE title_index USING fts5(title, content='searched_titles', content_rowid='id', tokenize='trigram');
    CREATE VIRTUAL TABLE title_terms USING fts5vocab('title_index', 'instance');
    INSERT INTO title_index (title_index) VALUES ('rebuild');
    CREATE TRIGGER title_new AFTER INSERT ON chats BEGIN
        INSERT INTO title_index (rowid, title) VALUES (new.id, new.title || char(10, 10));
    END;
    CREATE TRIGGER title_gone AFTER DELETE ON chats BEGIN
        INSERT INTO title_index (title_index, rowid, title) VALUES ('delete', old.id, old.title || char(10, 10));
    END;
    CREATE TRIGGER title_changed AFTER UPDATE OF title ON chats WHEN old.title <> new.title BEGIN
        INSERT INTO title_index (title_index, rowid, title) VALUES ('delete', old.id, old.title || char(10, 10));
        INSERT INTO title_index (rowid, title) VALUES (new.id, new.title || char(10, 10));
    END;
    CREATE TRIGGER index_new AFTER INSERT ON messages WHEN new.state <> 'streaming' BEGIN
        INSERT INTO message_index (rowid, content) VALUES (new.id, new.content || char(10, 10));
    END;
    CREATE TRIGGER index_gone AFTER DELETE ON messages WHEN old.state <> 'streaming' BEGIN
        INSERT INTO message_index (message_index, rowid, content) VALUES ('delete', old.id, old.content || char(10, 10));
    END;
    CREATE TRIGGER index_changed AFTER UPDATE OF content, state ON messages BEGIN
        INSERT INTO message_index (message_index, rowid, content)
            SELECT 'delete', old.id, old.content || char(10, 10) WHERE old.state <> 'streaming';
        INSERT INTO message_index (rowid, content)
            SELECT new.id, new.content || char(10, 10) WHERE new.state <> 'streaming';
    END;
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
