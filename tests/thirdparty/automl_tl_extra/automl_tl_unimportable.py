"""A plugin that was written for something that is not here."""

raise ImportError("needs a library that nobody has")
