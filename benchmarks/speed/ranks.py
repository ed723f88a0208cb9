"""Several processes: steps per second of training on one CPU machine, with the same rows in each step.

One process uses one thread or two. Two processes use one thread each, and train on half of each batch. Each contestant
is started for each round, and trains two epochs; the second is timed, without validation. All processes share one
memory bus and the same cores, so two processes should gain nothing over two threads."""
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from .common import alternate, medians, ratio_row

ROOT = Path(__file__).resolve().parents[2]
CONTESTANTS = { # processes, threads of each
    'one process, one thread': (1, 1), 'one process, two threads': (1, 2), 'two processes, one thread each': (2, 1)}

def run(
    processes:int, # Number of processes
    threads:int, # Threads of each process
    rows:int, # Number of rows to train on
    bs:int, # Rows in a step, over all processes
    i:int, # The round
) -> dict: # Numbers
    "Train in new processes, and return the steps per second"
    env = os.environ | dict(ACCELERATE_USE_CPU='true', OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM='false')
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    script = ['-m', 'benchmarks.speed.rank_steps', str(rows), str(bs//processes)]
    command = [*(launcher if processes > 1 else []), *script]
    out = subprocess.run([sys.executable, '-W', 'ignore', *command], cwd=ROOT, env=env, check=True,
                         stdout=subprocess.PIPE, text=True).stdout
    return {'steps/s': float(out.strip().splitlines()[-1])}

# --- The section

def measure(
    rounds:int, # Number of rounds
    rows:int, # Number of rows to train on
    bs:int=16, # Rows in a step
) -> dict: # Captions mapped to rows
    "Return the tables of this section"
    contestants = {k: partial(run, *v, rows, bs) for k,v in CONTESTANTS.items()}
    results = alternate(contestants, rounds, warmup=0)
    one,threads,processes = CONTESTANTS
    figures = [ratio_row(f'{processes} over {o}', results[processes]['steps/s'], results[o]['steps/s'], unit='steps/s')
               for o in (one, threads)]
    return {f'{rows} short texts, {bs} in a step, MiniLM in fp32.': figures, 'Each contestant.': medians(results)}
