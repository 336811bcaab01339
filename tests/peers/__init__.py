"""Other libraries, held beside refl. They come with the extra `peers`; without them these tests are
skipped.
"""
