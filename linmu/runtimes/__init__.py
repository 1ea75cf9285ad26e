"""Running a bundle: the Runner protocol, its backends, and the session on top of them."""
