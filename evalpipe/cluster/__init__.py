"""Judging and replaying on a Ray cluster: shards make the calls; plan, limits, money and journal are the driver's."""
