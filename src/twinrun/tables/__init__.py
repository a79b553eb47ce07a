"""CSV files that people write and read, and the names in them."""
