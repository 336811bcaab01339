"""The identities relevance obeys, measured on a checkpoint.

catalogue              number -> title and function; `verify` runs them
model_under_test       a model, one input, the output that is explained
methods                on which methods an identity is measured
rows, conditioning     what was measured, and how far it may be off
conservation           1, 3, 12     surrogate_gradient     2       relu_and_linear   4, 6
products               5, 10        invariance             7       linearity         8
runs                   9            forward_decomposition  11      small_nets        4, 5, 6, 10, 12
graph, reparametrized  the attentions of a net; the same function written with other weights
small_traces, weights  small nets swept; weights as a function of the stored ones
report                 how it is shown
"""

if __name__ != "refl.verification.identities":
    raise ImportError(
        "this folder is the package refl.verification.identities; install the project and "
        "import that name"
    )
