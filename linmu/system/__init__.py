"""The machine: what is installed, what it has and how much of it is in use; signals; units."""
