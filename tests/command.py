"""The command line, for tests that need a process of its own."""

import sys

SDJAX = [sys.executable, "-c", "import sys, sdjax.cli; sys.exit(sdjax.cli.main())"]
