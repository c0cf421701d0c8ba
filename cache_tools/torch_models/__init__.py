"""What both stages know about models in torch: how they are loaded, what their head computes, how a head is stored.

The only room of this package that may import torch and transformers. No other room of the package may import it, so a
cache opens on a machine without torch. It may import every other room. The reasons are in decision 32.

In reading order:

- ``gguf``: read a model from a GGUF file.
- ``quantised``: name the quantisation of a model, of either kind.
- ``loading``: load a checkpoint so that every weight comes from its files.
- ``tokenizers``: open the tokenizer of a cache or vocabulary as untrusted data.
- ``segments``: let a model read pairs by their segments.
- ``scaling``: measure how a model turns the products of its output matrix into logits.
- ``head_file``: write and read ``head.safetensors``.
"""
