"""`python -m mixout_export_cli`."""

from mixout_export_cli.main import main

if __name__ == "__main__":
    main()
