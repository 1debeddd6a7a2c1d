"""Crashes, outages and races: one test per way in which a job could be lost."""
