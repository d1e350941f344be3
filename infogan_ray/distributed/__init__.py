"""The only package that imports Ray."""

import os

LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

# Ray reads these variables when it is imported.
# Without this one, a call to Ray after a shutdown starts a new cluster.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# With "0", as by default on macOS, a local cluster has the address 127.0.0.1 and listens there alone.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault(LOOPBACK_VARIABLE, "0")
