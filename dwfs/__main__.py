"""`python -m dwfs`: the command line."""

import sys

from dwfs.cli.main import main

sys.exit(main())
