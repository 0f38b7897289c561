"""Does a slower average of words learn more?

A study of two arms, for the tests of commands.
"""

from smooth_words import config

from llmlab.study import Study, one_at_a_time


def study() -> Study:
    arms = one_at_a_time(config(), {"slower": {"model.stack.segments.0.pattern.0.mixer.keep": 0.7}})
    return Study(question="Does a slower average learn more?", base=config(), arms=arms, noise=None)
