"""Reads a Parquet export with DuckDB, compares it with the JSON Lines export of the same records, and prints what it saw."""

import json
import sys
from datetime import datetime

import duckdb

parquet, lines = sys.argv[1:]
table = f"read_parquet('{parquet}')"
types = dict(duckdb.sql(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {table})").fetchall())
# As milliseconds, since Python's own form of a time with a zone needs another package.
rows = duckdb.sql(f"SELECT * REPLACE (epoch_ms(timestamp) AS timestamp) FROM {table}")
names = rows.columns
rows = [dict(zip(names, row)) for row in rows.fetchall()]

with open(lines, encoding="utf-8") as file:
    records = [json.loads(line) for line in file]
assert len(rows) == len(records), (len(rows), len(records))
for row, record in zip(rows, records):
    messages = record.pop("messages")
    row["request"] = json.loads(row["request"])
    expected = record | {
        "request": messages["request"],
        "response": messages["response"]["content"],
        "timestamp": int(datetime.fromisoformat(record["timestamp"]).timestamp() * 1000),
    }
    assert row == expected, (row, expected)
print(json.dumps({"rows": len(rows), "types": types}))
