"""`python -m hwnas`: the command line without its script on the path."""

from hwnas.cli import main

if __name__ == "__main__":
    main()
