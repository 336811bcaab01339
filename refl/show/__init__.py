"""How an explanation is shown: lines for a terminal, colored or plain, one HTML page, a notebook.

    explanation   what explain() hands to a user: print it, or ask for e.html()
    account       what every view says: the account, the rows of tokens, the candidates
    terminal      the picture for a terminal
    tables        ledgers, methods and kept sites as tables
    traces        a sweep by operation, by block, by attention head
    page          one HTML page (its style is page.css)
    answer        every token of an answer: a matrix, in lines and on a page (its style is
                  answer.css); answer_view is what it says, answer_figure a picture for a paper
    notebook      the body of the page for a notebook
    heatmap       relevance drawn over a picture
    figure        a picture for a paper; drawing (SVG, PDF) and tex write it
    curves        curves of an evaluation; plots is what matplotlib needs
    text, lines, markup, numbers, colors   what these are made of

What draws imports what is drawn; no explanation, ledger or composite imports anything of this.
"""
