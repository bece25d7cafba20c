"""The library; see `docs/design.md`."""
