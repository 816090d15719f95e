"""The command line. One file per command group; `main` mounts them."""
