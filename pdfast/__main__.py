"""`python -m pdfast`."""

from pdfast.cli import main

raise SystemExit(main())
