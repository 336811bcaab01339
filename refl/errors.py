"""The one exception that refl raises for bad input: a sentence that says what was expected, what
came, and what to do.
"""


class ReflError(Exception):
    """Input that refl cannot work with. Its text is one sentence, meant to be shown to the user as
    it stands.
    """
