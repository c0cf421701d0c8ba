"""Progress: what long commands show on stderr while they work. This room imports nothing of the package.

- ``stage``: amount done, speed and time left of one stage.
- ``reporter``: what a program tells of its progress.
- ``lines``: the one reporter, as plain lines.
- ``bars``: the same as bars in a terminal.
"""
