"""What happens in a clip: a sentence for each step, or one for all."""

from dora_jax.data.scenes.clips import Clip, Event, called_the
from dora_jax.data.scenes.describe import sentence, with_article
from dora_jax.data.scenes.families import Wording

_DOES: dict[Wording, dict[str, str]] = {
    "plain": {
        "left": "{x} moves to the left",
        "right": "{x} moves to the right",
        "appears": "{x} appears",
        "disappears": "{x} disappears",
        "colour": "{x} turns {becomes}",
        "hits": "{x} hits {y}, which {effect}",
    },
    "other": {
        "left": "{x} goes leftwards",
        "right": "{x} goes rightwards",
        "appears": "{x} shows up",
        "disappears": "{x} vanishes",
        "colour": "{x} is now {becomes}",
        "hits": "{x} runs into {y}, and that one {effect}",
    },
}
_EFFECTS: dict[Wording, dict[str, str]] = {
    "plain": {
        "away": "moves away",
        "disappears": "disappears",
        "colour": "turns {becomes}",
        "shape": "turns into {a_becomes}",
        "nothing": "stays as it is",
    },
    "other": {
        "away": "is driven off",
        "disappears": "vanishes",
        "colour": "is now {becomes}",
        "shape": "is now {a_becomes}",
        "nothing": "does not change",
    },
}
_THEN = {"plain": ", then ", "other": "; next "}


def clip_steps(clip: Clip, wording: Wording = "plain") -> tuple[str, ...]:
    """Return a sentence for each event, in order of time."""
    return tuple(sentence(_told(clip, event, wording)) + "." for event in clip.events)


def clip_caption(clip: Clip, wording: Wording = "plain") -> str:
    """Return one sentence that tells all events, in order of time."""
    told = [_told(clip, event, wording) for event in clip.events]
    return sentence(_THEN[wording].join(told)) + "."


def _told(clip: Clip, event: Event, wording: Wording) -> str:
    slots = {"x": called_the(clip.cast[event.actor]), "becomes": event.becomes}
    if event.other is not None:
        slots["y"] = called_the(clip.cast[event.other])
        slots["a_becomes"] = with_article(event.becomes) if event.becomes else None
        slots["effect"] = _EFFECTS[wording][str(event.effect)].format(**slots)
    return _DOES[wording][event.action].format(**slots)
