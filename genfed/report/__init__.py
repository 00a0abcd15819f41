"""What a run leaves behind for people: metrics, tables, pictures, a page."""
