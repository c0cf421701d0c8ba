"""The viewer: a cache in a browser, served by this machine.

This room imports ``inspection`` and below; starlette and uvicorn are imported only when the viewer runs.

In reading order:

- ``command``: ``logitcask view``, its address and its token.
- ``app``: the addresses and their errors.
- ``guard``: who may ask, and what a browser may do with the answers.
- ``pages``: what the pages show, as data.
- ``search``: searches that stop and continue when asked.
- ``web/``: the page itself.
"""
