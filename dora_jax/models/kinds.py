"""What kind of value each field of a model's config holds."""

from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from dora_jax.analysis.records import SCALARS, is_instance


def check_kinds(config: Any, names: Mapping[str, str] | None = None) -> None:
    """Check that the fields of a config hold what their annotations name.

    Fields of one text, number or truth value are checked, and tuples of such; what other
    annotations allow is left to the config.

    Args:
        config: a dataclass.
        names: of fields in the file that the config is read from, where they differ.

    Raises:
        ValueError: naming the field, what it is and what it may be.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        is_several = get_origin(hint) is tuple
        kind = get_args(hint)[0] if is_several else hint
        if kind not in SCALARS:
            continue
        allowed, words = SCALARS[kind]
        for one in value if is_several else (value,):
            if not is_instance(one, allowed):
                raise ValueError(f"{(names or {}).get(name, name)} must be {words}; got {one!r}")
