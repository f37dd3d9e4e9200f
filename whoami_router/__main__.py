"""Lets ``python -m whoami_router`` do what the ``whoami-router`` command does."""

from whoami_router.cli import main

if __name__ == "__main__":
    main()
