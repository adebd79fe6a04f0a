"""How many texts a second VL-BART writes, by the rows that are decoded at once; JSON.

python -m benchmarks.vlbart_generation --rows 1 8 32 --beams 1 5. Random weights of the plain model
(an adapter is merged away for this), and no text ends early: each has all its tokens. One beam is
greedy. All settings take turns within one run.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.arguments import add_setting, setting_of
from benchmarks.training_step import device, random_base, time_alternately
from benchmarks.vlbart_setting import VLBartSetting
from dora_jax.generation import Sampling, generate_ids

_TRAINING_ALONE = ("method", "batch", "rank", "remat", "micro_batches")


def writing(setting: VLBartSetting, base: Any, rows: int, beams: int) -> Callable[[], object]:
    """Return what writes texts of `setting.target` tokens for so many rows at once."""
    sampling = Sampling(setting.target, num_beams=beams)
    prompts = setting.random_tokens(rows, setting.prompt).tolist()
    features = [list(row) for row in setting.random_features(rows)]
    model, variables = setting.plain(), {"params": base}
    return lambda: generate_ids(model, variables, prompts, sampling, (), images=features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser, _TRAINING_ALONE, VLBartSetting)
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 8, 32), help="decoded at once")
    parser.add_argument("--beams", type=int, nargs="+", default=(1, 5))
    args = parser.parse_args()
    setting = setting_of(args, VLBartSetting)
    base = random_base(setting)
    cases = [(beams, rows) for beams in args.beams for rows in args.rows]
    runs = [writing(setting, base, rows, beams) for beams, rows in cases]
    found = []
    for (beams, rows), times in zip(cases, time_alternately(runs, args.steps), strict=True):
        median = statistics.median(times)
        found.append(
            {
                "beams": beams,
                "rows": rows,
                "seconds": median,
                "seconds_min": min(times),
                "rows_per_s": rows / median,
                "rows_per_s_max": rows / min(times),
            }
        )
    print(json.dumps(vars(args) | device() | {"results": found}))


if __name__ == "__main__":
    main()
