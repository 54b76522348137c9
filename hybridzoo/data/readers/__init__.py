"""Readers: one file a format. Each returns a `Raw` and names what it could not use."""
