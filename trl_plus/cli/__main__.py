"""`python -m trl_plus.cli`: how a launcher starts the command line in each of its processes."""

from trl_plus.cli import main

main()
