"""The built-in plugins of automl_tl: on the same road as anyone's."""
