"""`python -m hybridzoo` is the `hybridzoo` command."""

from hybridzoo.cli import main

if __name__ == "__main__":
    main()
