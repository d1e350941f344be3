"""The commands behind ``infogan``, one module each: parse flags, call the package, print, return an exit code."""
