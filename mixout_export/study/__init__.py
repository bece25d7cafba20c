"""Studies: tasks × arms × seeds, their records, and what they show."""
