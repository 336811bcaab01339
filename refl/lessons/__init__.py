"""The lessons: what `refl learn` lists, shows, steps through and makes notebooks of.

NN_name.md    a lesson: Markdown whose >>> examples the test suite executes
pictures/     drawn by refl: python -m refl.verification.quality.lesson_pictures
lesson        a lesson read: its sections, and the pieces of a text
examples      >>> examples executed
reading       a lesson in a terminal
live          a lesson, section by section, with its questions
notebooks     a lesson as a Jupyter notebook
"""
