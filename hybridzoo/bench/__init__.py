"""Speed measurements: models and their rivals in one process, by one clock, into one JSON file."""
