"""Pictures and clips that requests name: within them, in a folder, or on the network."""
