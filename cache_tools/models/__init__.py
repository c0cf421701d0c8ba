"""Model folders, checked without torch: which weights they hold, and whether a model meets a cache's assumptions.

Both stages load models and may not import each other, so the checks that they share are pure functions in this room.
This room imports the storage functions, the codec of bfloat16 and the errors.

- ``files``: the weight files of a folder, and one hash over them.
- ``loading_report``: which missing, unexpected or misshapen weights are refused.
- ``tensors``: single tensors of weight files, in numpy.
- ``quantised``: how quantised weights are stored, by configuration and headers.
- ``final_norm``: the norm before the output matrix, and its inverse.
- ``probe``: whether rows depend on later tokens, padding or other sequences.
"""
