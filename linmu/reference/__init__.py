"""What exported graphs are held to: the eager step form with a target's roundings, vision towers as exported."""
