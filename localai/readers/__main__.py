"""The child process: `python -m localai.readers KIND`."""

from localai.readers import main

main()
