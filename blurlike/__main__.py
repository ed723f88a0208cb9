"`python -m blurlike` is the command `blurlike`"
from .cli import main

main()
