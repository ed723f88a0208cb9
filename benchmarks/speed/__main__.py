"""Measure how fast blurlike is, and write the results to a file.

    python -m benchmarks.speed
    python -m benchmarks.speed --full --only training,prediction
"""
import sys
from contextlib import redirect_stdout
from types import ModuleType
from typing import NamedTuple

from fastcore.script import call_parse

from . import adapters, data, fixed, generation, prediction, ranks, scale, training
from .common import by_device, section_text, write_section

ROUNDS = 5

class Section(NamedTuple):
    "A module that measures, with the sizes of its quick and its full run"
    module: ModuleType
    quick: dict
    full: dict

SECTIONS = {
    'training': Section(training, dict(short=320, mixed=160, held_out=200), dict(short=1000, mixed=500, held_out=400)),
    'prediction': Section(prediction, dict(texts=120, train=320), dict(texts=400, train=4000)),
    'data': Section(data, dict(rows=1000, sizes=(10_000, 100_000)),
                    dict(rows=8000, sizes=(10_000, 100_000, 1_000_000))),
    'fixed': Section(fixed, dict(calls=50, steps=50), dict(calls=200, steps=200)),
    'generation': Section(generation, dict(texts=8, tokens=8), dict(texts=200, tokens=20)),
    'scale': Section(scale, dict(few=10_000, many=50_000, others=20_000),
                     dict(few=100_000, many=1_000_000, others=100_000)),
    'ranks': Section(ranks, dict(rows=160), dict(rows=1600)),
    'adapters': Section(adapters, dict(steps=1), dict(steps=10))}

def chosen(
    only:str, # Comma-separated names; "" for all sections
) -> list[str]:
    "Return the names of the sections to measure; raises `ValueError` for an unknown name"
    names = only.split(',') if only else list(SECTIONS)
    if wrong := [o for o in names if o not in SECTIONS]:
        raise ValueError(f"only={only!r}: {wrong[0]!r} is not one of {', '.join(SECTIONS)}.")
    return names

@call_parse
def main(
    full:bool=False, # Run at full size: hours on two cores; a quick run takes half an hour and is less precise
    only:str='', # Comma-separated names of sections; all if omitted
    out:str='benchmarks/RESULTS.md', # File to write to, one section at a time
):
    "Compare the speed of blurlike with the alternatives"
    for name in chosen(only):
        section = SECTIONS[name]
        sizes = section.full if full else section.quick
        with redirect_stdout(sys.stderr): tables = section.module.measure(ROUNDS, **sizes)
        command = f"python -m benchmarks.speed{' --full' if full else ''} --only {name}"
        text = section_text(section.module.__doc__, tables, command)
        write_section(out, by_device(name, f'{name}, GPU'), text)
        print(f'\n{text}')
