"""Distances between domains and transferability scores."""
