"""``python -m butterfly_sdm`` is the command line."""

from butterfly_sdm.cli import main

if __name__ == "__main__":
    main()
