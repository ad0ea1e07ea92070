"""The README as a test: its commands are parsed, checked against the real parsers, and typed one after the other."""
