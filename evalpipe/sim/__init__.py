"""Simulated providers: real HTTP servers that answer from a corpus, keep limits, fail on request and keep a ledger."""
