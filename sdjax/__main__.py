"""`python -m sdjax`, where the folder of commands is not on the path."""

import sys

from sdjax.cli import main

sys.exit(main())
