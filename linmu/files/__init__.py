"""Opening, writing and replacing files and folders: whole or not at all, and never outside the folder meant."""
