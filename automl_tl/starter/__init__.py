"""The files that `automl-tl plugins new` fills in and writes."""
