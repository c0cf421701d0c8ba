"""The viewer: a cache in a browser, served by this machine.

This room imports ``report.data``, ``inspection`` and below; starlette and uvicorn are imported only when the viewer
runs.

In reading order:

- ``command``: ``logitcask view``, its address and its token.
- ``app``: the addresses and their errors.
- ``guard``: who may ask, and what a browser may do with the answers.
- ``pages``: what the pages show, as data.
- ``overview``: the statistics of the first page, from a sample that is read in the background.
- ``alignments``: a text as two tokenizers cut it.
- ``search``: searches that stop and continue when asked.
- ``web/``: the page itself.
"""
