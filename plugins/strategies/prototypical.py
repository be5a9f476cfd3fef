from automl_tl import hookimpl


@hookimpl
def register_strategies():
    return []
