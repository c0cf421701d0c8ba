"""Progress: what long commands show on stderr while they work. This room imports nothing of the package.

- ``reporter``: the one reporter, as plain lines.
- ``stage``: amount done, speed and time left of one stage.
- ``bars``: the same as bars in a terminal.
"""
