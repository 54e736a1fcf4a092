"""The statistics, pure and small: arrays and counts in, estimates out. Methods: see each docstring for the source."""
