"""How long an attribution takes, and how much memory, beside its peers on the same weights.

    python -m refl.verification.quality.benchmark --only tokens depth short batch vision t5

Models of random weights are written to a temporary folder and both sides load them in float32, with
the same number of threads, the same input and the same target. Runs alternate in one process, each
round in the other order than the one before it, after a run of each that is not counted; a figure
is a median over the rounds, and `refl / peer` the median of the rounds' own quotients. Both sides'
relevance is compared in the same run, and so is the conservation error held to rounding.

    tokens    a Llama of GPT-2's size (hidden 768, 12 layers) from 16 to 8,192 tokens
    depth     the same with 2 to 24 layers, at 256 tokens
    short     16 and 64 tokens on the shipped model and on stories260K: what an operation costs
    batch     500 inputs as one list, as long as sentences are
    vision    a ViT-B/16 on 224 x 224 pixels
    t5        a model of Flan-T5-base's shape

The peers. LXT's gradient x input form (attnlrp-gradient, cp-lrp) is asked for the logits of the
last token only, which is what refl computes; `every token` is how its documentation has one call
it. For input-x-gradient it is torch's autograd on transformers' model, with gradients asked for at
the embeddings (or pixels) alone. refl is run with nothing kept, its fast path.

A row that was measured while others kept the machine busy is measured again, three times at most;
the quietest time counts, whatever it gave. How busy others were stands in the row.

Peak memory is measured apart, each side in a process of its own, as the rise above what the process
held with the weights loaded and used once. On a GPU both sides count what their allocators hold.

    spec        what one side is to run, in words that travel to another process
    sides       refl and its peers, each ready to run
    workload    the models and the inputs
    devices     CPU or GPU: where arrays lie, when work is done, what memory it took
    rounds      the alternation, and the figures made of it
    machine     the machine and the libraries, in words
    parts       what is measured: the rows
    results     the rows as JSON, a file for each kind of machine, in results/
    page        the table for the guide, made of those files
    plot        the figure, made of one of them
    curves      perturbation curves a second: a command of its own
"""
