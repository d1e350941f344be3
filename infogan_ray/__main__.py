"""``python -m infogan_ray``: the same as ``infogan``, where the script is not installed, as on a cluster."""

from infogan_ray.cli.main import main

raise SystemExit(main())
