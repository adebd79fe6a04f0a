"""VQA's soft accuracy: how far an answer agrees with what several people answered."""

from collections.abc import Sequence


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return the mean, over leaving each person out, of min(1, those who agree / 3).

    Of ten people one who agrees gives 0.3, two 0.6, three 0.9, and four or more 1 (Antol et al.
    2015, section 3, as the official evaluation averages it).

    Args:
        answer: the model's; it and the references as they are to be compared, word for word.
        references: what people answered, at least one.

    Returns:
        From 0 to 1.
    """
    people = len(references)
    agree = sum(reference == answer for reference in references)
    # Who agrees and is left out agrees no more.
    inside, outside = min(1.0, (agree - 1) / 3), min(1.0, agree / 3)
    return (agree * inside + (people - agree) * outside) / people
