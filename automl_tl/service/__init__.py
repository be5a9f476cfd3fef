"""The HTTP API and its page: `automl-tl serve`."""
