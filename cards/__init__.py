"""Cards, figures, the report and the command that walks the whole road."""
