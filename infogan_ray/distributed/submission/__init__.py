"""Jobs handed to other machines, one module for each backend."""
