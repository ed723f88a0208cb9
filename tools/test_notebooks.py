"""Run the notebooks as tests, as `nbdev-test` does, and print how long each took

Each notebook runs in a process of its own, since one process would keep the models of all, about 1 GB each. The
processes are forks of this one, which has imported the libraries that all notebooks need. Each starts from the same
random state: run with another `--seed` to find tests that pass by luck. What a notebook saves in the temporary folder
is removed after it.
"""
import os
import re
import sys
import tempfile
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic

import datasets  # noqa: F401
import fastai.callback.all  # noqa: F401
import transformers  # noqa: F401
from fastai.torch_core import set_seed
from fastcore.script import call_parse
from nbdev.config import get_config
from nbdev.test import test_nb
from notebooks import ROOT, notebooks


def test(
    path:Path, # A notebook
    flags:list, # Flags of cells to skip
    seed:int, # Of all random numbers
):
    "Test the notebook in this process, and exit with 1 if it fails"
    set_seed(seed)
    with tempfile.TemporaryDirectory(prefix=path.stem) as folder:
        os.environ['TMPDIR'] = tempfile.tempdir = folder
        passed,_ = test_nb(path, skip_flags=flags, basepath=ROOT)
    sys.exit(not passed)

def test_all(
    paths:list, # Notebooks
    workers:int, # Maximum number of notebooks that run at once
    flags:list, # Flags of cells to skip
    seed:int, # Of all random numbers
) -> list: # Notebooks that failed
    "Test the notebooks, and print a line as each ends"
    context,waiting,running,failed = get_context('fork'),list(paths),{},[]
    while waiting or running:
        while waiting and len(running) < workers:
            path = waiting.pop(0)
            process = context.Process(target=test, args=(path, flags, seed))
            process.start()
            running[process.sentinel] = process,path,monotonic()
        for o in wait(list(running)):
            process,path,start = running.pop(o)
            process.join()
            passed = process.exitcode==0
            result,name = 'passed' if passed else 'FAILED',path.relative_to(ROOT)
            print(f'{result} {monotonic()-start:4.0f} s  {name}', flush=True)
            if not passed: failed.append(path)
    return failed

@call_parse(pos=['pattern'])
def main(
    pattern:str='', # Test only notebooks whose path matches this regular expression
    workers:int=2, # Maximum number of notebooks that run at once
    seed:int=0, # Random state in which each notebook starts
):
    "Test the notebooks in reading order"
    paths = [o for o in notebooks() if re.search(pattern, str(o.relative_to(ROOT)))]
    failed = test_all(paths, workers, get_config(ROOT).tst_flags.split(), seed)
    if failed: sys.exit(f"Failed: {', '.join(str(o.relative_to(ROOT)) for o in failed)}")
