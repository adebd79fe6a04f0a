"""Read the text of a compiled program."""

import collections
import math
import re

_SHAPE = r"\w+\[([\d,]*)\]\S*"


def result_shapes(text, *operations):
    """Return the shape of each result of these operations; a tuple result gives each of its own."""
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?[\w.\-]+ = (.+?) ([\w\-]+)\(", line)
        if match and match[2] in operations:
            found += [
                tuple(int(n) for n in dims.split(",") if n)
                for dims in re.findall(r"\w+\[([\d,]*)\]", match[1])
            ]
    return found


def made_of_size(text, sizes):
    """Count the results of these numbers of elements that a program computes, by operation.

    Tuples and their elements, parameters, slices and views hold no new data of their own.
    """
    views = {"parameter", "get-tuple-element", "bitcast", "dynamic-slice", "slice", "reshape"}
    found = collections.Counter()
    for match in re.finditer(r" = \w+\[([\d,]*)\]\S* ([\w-]+)\(", text):
        elements = math.prod(int(axis or 1) for axis in match[1].split(","))
        if elements in sizes and match[2] not in views:
            found[match[2]] += 1
    return found


def instructions(text):
    """Return a program's instructions without what only names source lines and itself."""
    kept = []
    for line in text.splitlines():
        line = re.sub(r", metadata=\{[^}]*\}", "", line)
        if line and not re.match(
            r"HloModule|FileNames|FunctionNames|FileLocations|StackFrames|\d+ ", line
        ):
            kept.append(line)
    return kept


def squeezed(shape):
    """Return a shape without its ones, sorted: the same whatever the order of the axes."""
    return tuple(sorted(n for n in shape if n != 1))


def size(shape):
    return math.prod(shape)
