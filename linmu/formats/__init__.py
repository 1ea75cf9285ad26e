"""What lies on disk: reading it with every check, and writing it. No torch."""
