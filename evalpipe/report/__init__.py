"""The report: an `Analysis` → HTML, Markdown, CSV, terminal."""
