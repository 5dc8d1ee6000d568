"""Weight files: safe reading and the key maps of other implementations."""
