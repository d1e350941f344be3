"""The commands of ``infogan``, one module each: parse flags, call the package, print, and return an exit code."""
