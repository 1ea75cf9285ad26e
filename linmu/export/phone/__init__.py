"""ExecuTorch programs for phones: one file that holds every method of a student (bundle.md, "Targets android, ios")."""
