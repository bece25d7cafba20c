"""What came out of a comparison, as a page to look at."""
