"""Write the result of a comparison as an HTML page."""
