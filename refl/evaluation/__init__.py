"""Is an explanation faithful? What is known about an input, or what the model does when the input
is changed, held against what the explanation says. A file per question.

    known_evidence    the shipped model's grammar says which word decides: is it found?
"""
