"""``python -m service_security``."""

from .cli import main

raise SystemExit(main())
