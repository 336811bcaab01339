"""One file per architecture, forward only, top to bottom like its paper; shared half-blocks beside them."""

if __name__ != "refl.nets":
    raise ImportError("this folder is the package refl.nets; install the project (pip install -e .) and import that name")

from refl.nets import gpt2, llama

NETS = {net.MODEL_TYPE: net for net in (llama, gpt2)}
"""model_type of config.json -> the net."""
