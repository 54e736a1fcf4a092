"""The spool: the collector's append-only log, its format, writer, readers, and the joining of its records."""
