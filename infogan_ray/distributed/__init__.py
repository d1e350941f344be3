"""The only package that imports Ray."""

import os

# Asked something without a cluster, as after a shutdown, Ray would start one. It reads this when it is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
