"""Judging, replaying, loading and reporting on a Ray cluster: shards make the calls and tasks read; plan, limits, money, journal
and store are the driver's."""
