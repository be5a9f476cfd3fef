"""`python -m automl_tl.cli`, and `accelerate launch -m automl_tl.cli`: the same as `automl-tl`."""

from automl_tl.cli import main

if __name__ == "__main__":
    main()
