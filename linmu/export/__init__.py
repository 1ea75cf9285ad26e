"""Student to bundle: graphs, weight files, golden vectors (needs the export extra)."""
