"""Model folders, judged without torch: which weights they hold, and whether a model is what a cache assumes.

Both stages load models and may not import each other, so what they share about loading stands here as pure functions.
This room imports the storage functions and the errors.

- ``files``: the weight files of a folder, and one hash over them.
- ``loading_report``: which missing, unexpected or misshapen weights are refused.
- ``probe``: whether rows depend on later tokens, padding or other sequences.
"""
