"""Recipes of the embedded networks (JSON)."""
