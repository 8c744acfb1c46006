"""`python -m mechsink`: the command line."""

from mechsink.cli import main

if __name__ == "__main__":
    main()
