"""`python -m astra_mpi` is `astra-mpi`."""

import sys

from astra_mpi.cli import main

sys.exit(main())
