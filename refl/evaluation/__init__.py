"""Is an explanation faithful? What is known about the input, held against what was said about
it.
"""
