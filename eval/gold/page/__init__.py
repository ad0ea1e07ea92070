"""The local page that people label on."""
