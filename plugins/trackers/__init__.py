"""Trackers of a search."""
