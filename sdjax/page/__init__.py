"""A page for people, on the server: what `sdjax ui` shows."""
