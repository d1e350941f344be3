"""``python -m infogan_ray`` does the same as ``infogan``, for machines without the installed script."""

from infogan_ray.cli.main import main

raise SystemExit(main())
