-- The tables of tandem.sqlite. A row is visible to generation G when born <= G and (died is null or died > G).
-- Rows are never updated after they are born, so publishing a generation is moving one number.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE generations (
    number INTEGER PRIMARY KEY,
    parent INTEGER,
    created TEXT NOT NULL,           -- RFC 3339, UTC
    embedder TEXT NOT NULL,          -- Embedder.identity
    chunking TEXT NOT NULL,          -- how documents were chunked
    dimension INTEGER NOT NULL,
    documents INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    vector_file TEXT,                -- FAISS file beside the database; null: none was written yet
    vector_sha256 TEXT,
    vector_rows INTEGER NOT NULL,    -- rows in that file
    vector_drift INTEGER NOT NULL,   -- rows born or died since that file was written
    vector_kind TEXT NOT NULL,       -- how the file is searched, in words
    vector_recall REAL,              -- recall@10 against exact search when its lists were trained; null: no file
    vector_trained INTEGER NOT NULL  -- rows when its lists were trained; 0: exact, or no file
) STRICT;

CREATE TABLE files (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    corpus TEXT NOT NULL,
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    born INTEGER NOT NULL,
    died INTEGER
) STRICT;
CREATE INDEX files_born ON files (born);
CREATE INDEX files_died ON files (died) WHERE died IS NOT NULL;

CREATE TABLE documents (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    file INTEGER NOT NULL,
    id TEXT NOT NULL,
    corpus TEXT NOT NULL,
    path TEXT NOT NULL,
    title TEXT NOT NULL,
    format TEXT NOT NULL,
    text TEXT NOT NULL,
    pages TEXT NOT NULL,             -- JSON [[number, start, end], ...]
    headings TEXT NOT NULL,          -- JSON [[level, title, start], ...]
    metadata TEXT NOT NULL,          -- JSON object
    born INTEGER NOT NULL,
    died INTEGER
) STRICT;
CREATE INDEX documents_by_id ON documents (id);
CREATE INDEX documents_by_path ON documents (path);
CREATE INDEX documents_by_file ON documents (file);
CREATE INDEX documents_born ON documents (born);
CREATE INDEX documents_died ON documents (died) WHERE died IS NOT NULL;

CREATE TABLE chunks (
    row INTEGER PRIMARY KEY AUTOINCREMENT,  -- also the id in the FAISS index; never used again
    document INTEGER NOT NULL,
    id TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    page INTEGER,
    tokens INTEGER NOT NULL,
    context TEXT NOT NULL,
    text TEXT NOT NULL,
    vector BLOB NOT NULL,            -- key into vectors
    born INTEGER NOT NULL,
    died INTEGER
) STRICT;
CREATE INDEX chunks_by_id ON chunks (id);
CREATE INDEX chunks_by_document ON chunks (document);
CREATE INDEX chunks_by_vector ON chunks (vector);
CREATE INDEX chunks_born ON chunks (born);
CREATE INDEX chunks_died ON chunks (died) WHERE died IS NOT NULL;

CREATE VIRTUAL TABLE chunk_words USING fts5 (
    context, text, content = 'chunks', content_rowid = 'row', tokenize = 'porter unicode61 remove_diacritics 2'
);

CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL) STRICT;
-- Keys embedded by a sync that has not been published yet: kept over a kill, so that the next run goes on from there.
CREATE TABLE pending_vectors (key BLOB PRIMARY KEY) STRICT;

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    created TEXT NOT NULL,
    body TEXT NOT NULL               -- JSON, see service/jobs.py
) STRICT;

CREATE TABLE keys (
    sha256 BLOB PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    created TEXT NOT NULL,
    groups TEXT NOT NULL DEFAULT '[]',  -- JSON, the groups whose documents it opens
    expires TEXT                        -- RFC 3339, UTC; null: never
) STRICT;

-- Groups of uploaded files, by path in their corpus and by content; see readers.py.
CREATE TABLE file_groups (
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    groups TEXT NOT NULL,            -- JSON, of which a reader needs one
    PRIMARY KEY (path, sha256)
) STRICT;
CREATE INDEX documents_with_group ON documents (row) WHERE coalesce(json_extract(metadata, '$.group'), '') != '';
