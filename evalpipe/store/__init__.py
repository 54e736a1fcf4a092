"""The store of record: spool segments and other logs → Parquet, queried with DuckDB."""
