"""`python -m recipes.extrapolate`."""

from recipes.extrapolate.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
