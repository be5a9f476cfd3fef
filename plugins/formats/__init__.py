"""Readers of labelled images."""
