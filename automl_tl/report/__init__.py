"""Self-contained HTML pages: about a search, and about each of the two studies."""
