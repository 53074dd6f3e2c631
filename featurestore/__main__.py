"""`python -m featurestore` is the command `featurestore`."""

import sys

from featurestore.cli import main

sys.exit(main())
