"""Small encoded rows, shared by tests of batches and scoring."""

import numpy as np

from dora_jax.data.encode import EncodedRow


def random_row(seed, prompt, answers, vocabulary=101, correct=0, task=""):
    """Return a row of random ids: a prompt of that length, options of those lengths."""
    rng = np.random.default_rng(seed)

    def ids(length):
        return tuple(int(i) for i in rng.integers(3, vocabulary, length))

    question, options = ids(prompt), tuple(ids(length) for length in answers)
    texts = tuple("x" * (3 + n) for n in range(len(options)))
    return EncodedRow(question, options[correct], options, correct, texts[correct], texts, task)
