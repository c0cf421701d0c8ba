"""The demos: from a corpus to two students and a table, on one machine.

In reading order:

- ``cli``: ``logitcask demo``.
- ``stages``: run the stages of a demo as processes, and show the time left.
- ``run``: the demo with a toy teacher, in two or three minutes.
- ``real``: the demo with a language model that people know; 13 minutes on two cores with AMX.
- ``corpus``: the text that both read, which comes with the Python interpreter.
- ``teacher``: train the toy teacher.
- ``paired``: by how much one student is better than another, with an interval.
- ``continuations``: let several models continue the same prompt.
"""
