"""Calls of a model: limits, budget, journal, client and batches, for judges and replays."""
