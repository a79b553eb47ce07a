"""`python -m twinrun`: the command line."""

from twinrun.cli.main import main

if __name__ == "__main__":
    main()
