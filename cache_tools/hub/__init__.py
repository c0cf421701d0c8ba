"""Hub: what reading from the Hugging Face hub takes below ``storage``, which treats it as one more kind of place.

Sending a cache there is ``publishing``. huggingface_hub is imported inside the functions here, when the first hub URL
is used. This room imports ``errors`` and below.

In reading order:

- ``refusals``: the client's errors as one sentence without secrets, and requests that are repeated.
- ``places``: which commit a URL stands for, and whether reading it takes a token.
- ``reader``: ranges of files, sizes and listings.
"""
