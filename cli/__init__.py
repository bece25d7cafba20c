"""The command line of mixout-export."""
