"""`python -m lmdistill`."""

from lmdistill.cli import main

if __name__ == "__main__":
    main()
