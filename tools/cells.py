"""Check that the notebooks' exported cells are short, hold one definition each, and are followed by a use of it

The table covers the exported cells that define a function or a class. Lines are counted without directives.

A cell has one definition if it has one `def` or `class`, or one and its helpers. A helper is a private function
with a body of one statement, docstring aside, that another definition of the cell uses. Constants and imports are
not definitions, nor are the methods in a class: a class is one. Two methods added with `@patch` are two.

A use is a code cell before the next exported definition that mentions a name from the cell: a function, a class,
or a method. Syntax uses special methods such as `__len__`, so that any code cell counts as a use of them.
"""
import ast
import re
import sys
from math import ceil
from pathlib import Path
from statistics import median
from typing import NamedTuple

from fastcore.nbio import read_nb
from fastcore.script import call_parse
from notebooks import ROOT, notebooks

LONGEST,ONE_DEFINITION,USED = 40,.9,.8 # The goals
_head = '{:30}{:>6}{:>8}{:>6}{:>9}{:>10}{:>16}{:>8}'
_row = '{:30}{:>6}{:8.0f}{:6}{:9}{:10.0%}{:16.0%}{:8.0%}'
_functions = ast.FunctionDef, ast.AsyncFunctionDef

class Cell(NamedTuple):
    "An exported cell"
    notebook: str
    number: int # Its position in the notebook
    names: list # What it defines; empty for imports and constants
    lines: int
    one: bool # Whether it has one definition
    used: bool # Whether a use follows

def mentioned(
    tree, # A node of a syntax tree
) -> set[str]:
    "Return all names and attributes in `tree`"
    return {getattr(o, 'id', None) or getattr(o, 'attr', None) for o in ast.walk(tree)} - {None}

def is_helper(
    o, # A definition
    others:list, # The other definitions of its cell
) -> bool:
    "Return whether `o` is a private function of one statement that another definition uses"
    if not isinstance(o, _functions) or o.name[0]!='_' or o.name.endswith('__'): return False
    return len(o.body) - (ast.get_docstring(o) is not None) == 1 and any(o.name in mentioned(p) for p in others)

def definitions(
    cell, # A notebook cell
) -> list:
    "Return the functions and classes that `cell` defines, without helpers"
    defs = [o for o in cell.parsed_() or [] if isinstance(o, (*_functions, ast.ClassDef))]
    return [o for o in defs if not is_helper(o, [p for p in defs if p is not o])]

def is_used(
    defs:list, # Definitions
    cells:list, # The cells up to the next exported definition
) -> bool:
    "Return whether one of `cells` uses one of `defs`"
    methods = [m for o in defs if isinstance(o, ast.ClassDef) for m in o.body if isinstance(m, _functions)]
    names = {o.name for o in [*defs, *methods]}
    special = any(o.name.endswith('__') for o in defs)
    return any(special or names & mentioned(ast.Module(o.parsed_() or [], [])) for o in cells if o.cell_type=='code')

def exported(
    path:Path, # A notebook
) -> list[Cell]:
    "Return the exported cells of the notebook at `path`"
    cells,res,after = read_nb(path).cells, [], []
    for i,o in reversed([*enumerate(cells)]):
        if not any(k.startswith('export') for k in o.directives):
            after.append(o)
            continue
        defs = definitions(o)
        lines = len([*o.source.strip().splitlines()]) - len(o.directives)
        res.append(Cell(path.stem, i, [d.name for d in defs], lines, len(defs)==1, is_used(defs, after)))
        if defs: after = []
    return res[::-1]

def share(
    values, # Booleans
) -> float:
    "Return the share of `values` that are true, 1 for none"
    values = [*values]
    return sum(values)/len(values) if values else 1.

def row(
    name:str, # What the cells belong to
    cells:list, # `Cell`s that define something
) -> str:
    "Return a line of the table"
    lines = sorted(o.lines for o in cells)
    sizes = median(lines), lines[ceil(.9*len(lines)) - 1], lines[-1]
    shares = share(o.lines>LONGEST for o in cells), share(o.one for o in cells), share(o.used for o in cells)
    return _row.format(name, len(cells), *sizes, *shares)

@call_parse(pos=['pattern'])
def main(
    pattern:str='', # Check only notebooks whose path matches this regular expression
    verbose:bool=False, # List the cells that have several definitions or no use
):
    "Print a table of the notebooks' exported cells and the goals, and exit with 1 if they are not reached"
    paths = [o for o in notebooks() if re.search(pattern, str(o.relative_to(ROOT)))]
    cells = {o.stem: exported(o) for o in paths}
    everything = [o for v in cells.values() for o in v]
    defining = [o for o in everything if o.names]
    if not defining: return
    print(_head.format('', 'cells', 'median', 'p90', 'longest', f'over {LONGEST}', 'one definition', 'used'))
    for k,v in cells.items():
        if found := [o for o in v if o.names]: print(row(k, found))
    print(row('all', defining))
    print(_row.format('goal', '', 8, 20, LONGEST, 0, ONE_DEFINITION, USED))
    if verbose:
        for o in defining:
            what = ['several definitions']*(not o.one) + ['no use']*(not o.used)
            if what: print(f"{o.notebook} cell {o.number}, {', '.join(o.names)}: {', '.join(what)}")
    long = [o for o in everything if o.lines>LONGEST]
    missed = [f"{o.notebook} cell {o.number} has {o.lines} lines: {', '.join(o.names)}" for o in long]
    if share(o.one for o in defining)<ONE_DEFINITION: missed.append('Too few cells have one definition.')
    if share(o.used for o in defining)<USED: missed.append('Too few cells are followed by a use.')
    if missed: sys.exit('\n'.join(['', *missed, 'To list the cells: python tools/cells.py --verbose']))
