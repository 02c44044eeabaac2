"""`python -m smallview`."""

from smallview.cli import main

main()
