"""`python -m autoglm_client.cli`"""

from .app import main

main()
