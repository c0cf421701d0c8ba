"""Model folders, checked without torch: which weights they hold, and whether a model meets a cache's assumptions.

Both stages load models and may not import each other, so the checks that they share are pure functions in this room.
This room imports the storage functions and the errors.

- ``files``: the weight files of a folder, and one hash over them.
- ``loading_report``: which missing, unexpected or misshapen weights are refused.
- ``probe``: whether rows depend on later tokens, padding or other sequences.
"""
