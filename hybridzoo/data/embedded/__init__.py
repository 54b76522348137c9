"""Data that ship with the package. README.md says where they come from; make.py made the files."""
