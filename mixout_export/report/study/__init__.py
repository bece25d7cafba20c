"""Write the result of a study as an HTML page with pictures."""
