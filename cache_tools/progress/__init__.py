"""Progress: what long commands show on stderr while they work. This room imports nothing of the package.

- ``stage``: amount done, speed and time left of one stage.
- ``reporter``: the interface by which a program reports its progress.
- ``lines``: progress as plain lines, and the choice between lines and bars.
- ``bars``: progress as bars in a terminal.
"""
