"""The only package that imports Ray."""

import os

# Without this, a call to Ray after a shutdown starts a new cluster. Ray reads the variable when it is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
