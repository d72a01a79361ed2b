"""`python -m autoglm_cli`"""

from .app import main

main()
