"""The shipped facts: text, no code."""
