"Run the `blurlike` command with `python -m blurlike`"
from .cli import main

main()
