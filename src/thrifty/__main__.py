"""`python -m thrifty`: the same program as `thrifty`."""

from thrifty.cli.main import main

if __name__ == "__main__":
    main()
