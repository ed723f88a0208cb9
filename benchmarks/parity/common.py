"What the comparisons share: rows and seeds, one schedule for both sides, and the table"
import gc
import json
import math
import shutil
import sys
import tempfile
import time
from ast import literal_eval
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from datasets import Dataset, disable_progress_bars
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from blurlike.data.samples import minilm_checkpoint

SIDES = ('Trainer', 'blurlike')
WARMUP,WEIGHT_DECAY,MAX_GRAD_NORM = 0.1,0.01,1. # of both sides
FEWER = {'loss per token', 'mean squared error'} # Measures of which less is better

# --- Rows

def read_rows(
    csv:str, # A CSV file with a header line
    cols:list, # The columns that are needed
    lists:tuple=(), # Of these, the columns that hold lists, written as Python writes them
) -> pd.DataFrame:
    "Some columns of a CSV file; raises `ValueError` if one is missing or has an empty cell"
    df = pd.read_csv(csv, keep_default_na=False)
    for o in cols:
        if o not in df: raise ValueError(f"{csv} has no column {o!r}: there are {', '.join(map(repr, df))}.")
        if (df[o].astype(str).str.len()==0).any(): raise ValueError(f"{csv}: row {(df[o].astype(str).str.len()==0).idxmax()} has nothing under {o!r}.")
    df = df[list(dict.fromkeys(cols))]
    return df.assign(**{o: df[o].map(literal_eval) for o in lists})

def split_rows(
    df:pd.DataFrame, # All rows
    rows:int, # How many to use; None for all
    valid_pct:float, # The share to validate on
    seed:int, # Fixes the choice
) -> pd.DataFrame: # With a column `is_valid`
    "Shuffle rows and mark the last of them for validation"
    df = df.sample(min(rows or len(df), len(df)), random_state=seed, ignore_index=True)
    return df.assign(is_valid=df.index >= round(len(df)*(1-valid_pct)))

def train_valid(
    df:pd.DataFrame, # With a column `is_valid`
) -> tuple[Dataset, Dataset]:
    "The two splits, as `datasets` has them"
    return tuple(Dataset.from_pandas(df[df.is_valid==o].drop(columns='is_valid'), preserve_index=False) for o in (False, True))

# --- Training

def trainer_args(
    s, # The settings of a run
    cls=TrainingArguments, # Or a subclass
    **kwargs # Passed to `cls`
):
    "The arguments of a `Trainer`: AdamW, a linear warmup, a linear decay"
    return cls(tempfile.mkdtemp(), num_train_epochs=s.epochs, per_device_train_batch_size=s.bs, per_device_eval_batch_size=s.bs,
        learning_rate=s.lr, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM, warmup_steps=WARMUP, lr_scheduler_type='linear',
        train_sampling_strategy=s.sampling, seed=s.seed, report_to='none', save_strategy='no', logging_strategy='no', disable_tqdm=True, **kwargs)

def train_trainer(
    s, # The settings of a run
    model, # The model
    train_ds, # Encoded rows
    collator, # Makes batches of them
    cls=Trainer, # Or a subclass
    args_cls=TrainingArguments, # Or a subclass
    **kwargs # Passed to `args_cls`
): # The trainer
    "Train with `transformers.Trainer`"
    trainer = cls(model=model, args=trainer_args(s, args_cls, **kwargs), train_dataset=train_ds, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    with s.training: trainer.train()
    s.model = trainer.model
    return trainer

def train_blurlike(
    s, # The settings of a run
    learn, # From `hf_learner`
): # The learner
    "Train a fastai `Learner`; the schedule is `Trainer`'s, or with `one_cycle` fastai's"
    with s.training, learn.no_bar(), learn.no_logging():
        if s.one_cycle: learn.fit_one_cycle(s.epochs, s.lr, wd=WEIGHT_DECAY)
        else:
            steps = s.epochs*len(learn.dls.train)
            learn.fit_linear(s.epochs, s.lr, math.ceil(WARMUP*steps)/steps, WEIGHT_DECAY) # in whole steps, as `Trainer` counts them
    s.model = learn.model
    return learn

class Stopwatch:
    "Counts the seconds in a `with`: those that pass, and those that this process computes"
    def __init__(self): self.seconds = self.cpu = 0.
    def __enter__(self): self.start = time.perf_counter(),time.process_time()
    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self.start[0]
        self.cpu += time.process_time() - self.start[1]

# --- A checkpoint of our own

VOCAB = 4000 # Tokens of the tokenizers that `fresh` trains, at most

def fresh(
    texts, # What the tokenizer learns its tokens from
    auto_model, # An Auto class
    config, # Of the model, with `vocab_size=VOCAB` and the special tokens of BART: <s> 0, <pad> 1, </s> 2
    ends:bool=False, # Whether the tokenizer puts <s> and </s> around a text
) -> str: # A folder
    "A small model with fresh weights and a tokenizer that is trained on `texts`, where no checkpoint is at hand"
    tok = Tokenizer(models.BPE(unk_token='<unk>'))
    tok.pre_tokenizer,tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=['<s>', '<pad>', '</s>', '<unk>'], show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if ends: tok.post_processor = processors.TemplateProcessing(single='<s> $A </s>', pair='<s> $A </s> $B </s>', special_tokens=[('<s>', 0), ('</s>', 2)])
    folder = tempfile.mkdtemp()
    PreTrainedTokenizerFast(tokenizer_object=tok, bos_token='<s>', pad_token='<pad>', eos_token='</s>', unk_token='<unk>',
                            model_max_length=512, model_input_names=['input_ids', 'attention_mask']).save_pretrained(folder)
    set_seed(0)
    auto_model.from_config(config).save_pretrained(folder)
    return folder

# --- The comparison

def compare(
    df:pd.DataFrame, # All rows
    trainer, # Settings and rows to what `scores` takes
    blurlike, # The like
    scores, # Of the validation rows and what a side returned, a dict of numbers
    checkpoint:str=None, # A name on the Hub or a local folder; None for the bundled MiniLM
    epochs:int=3, # How often to go through the training rows
    bs:int=16, # Rows a batch
    lr:float=5e-5, # The highest learning rate
    max_length:int=128, # Tokens a text, at most
    seeds:int=3, # How many runs a side
    rows:int=None, # How many rows to use; all if not given
    valid_pct:float=0.3, # The share of them to validate on
    sampling:str='random', # Trainer's batches: "random", or "group_by_length" as blurlike's are
    one_cycle:bool=False, # Let blurlike use fastai's one-cycle schedule
    exact:bool=False, # In place of all that: without dropout, with all rows in one batch, how far apart are the weights?
    **more # What else a side wants to know
) -> pd.DataFrame: # A row a measure
    "Train both sides with each seed, in turns, and print the table"
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    df = split_rows(df, rows, valid_pct, seed=0)
    s = SimpleNamespace(checkpoint=str(checkpoint or minilm_checkpoint()), epochs=epochs, bs=bs, lr=lr, max_length=max_length, sampling=sampling,
                        one_cycle=one_cycle, **more)
    if exact: return compare_weights(s, df, trainer, blurlike)
    results = {o: [] for o in SIDES}
    for seed in range(seeds):
        for side,f in list(zip(SIDES, (trainer, blurlike), strict=True))[::-1 if seed%2 else 1]:
            results[side].append(run(f, scores, SimpleNamespace(**vars(s), seed=seed), df))
            print(f"seed {seed}, {side}: " + ', '.join(f'{k} {v:.4g}' for k,v in results[side][-1].items()), file=sys.stderr)
    table = side_by_side(*(pd.DataFrame(results[o]) for o in SIDES))
    report(table, df, seeds)
    return table

def run(
    side, # One of the two
    scores, # See `compare`
    s, # The settings of this run
    df:pd.DataFrame, # The rows
) -> dict: # Measures, and seconds
    "Train and score one side"
    gc.collect()
    set_seed(s.seed)
    s.training,whole = Stopwatch(),Stopwatch()
    with whole: result = side(s, df)
    return scores(df[df.is_valid], result) | {'seconds in all': whole.seconds, 'seconds of training': s.training.seconds,
                                             'seconds of training, CPU': s.training.cpu}

def without_dropout(
    checkpoint:str, # A name on the Hub or a local folder
) -> str: # A folder
    "A copy of `checkpoint` whose configuration sets every dropout to 0"
    folder = Path(shutil.copytree(checkpoint if Path(checkpoint).is_dir() else snapshot_download(checkpoint), tempfile.mkdtemp(), dirs_exist_ok=True))
    config = json.loads((folder/'config.json').read_text())
    config |= {k: 0. for k,v in config.items() if 'drop' in k and isinstance(v, float)}
    (folder/'config.json').write_text(json.dumps(config))
    return str(folder)

def compare_weights(s, df, trainer, blurlike):
    "Train both sides where chance has no part, and print the largest difference between their weights"
    s = SimpleNamespace(**vars(s) | dict(checkpoint=without_dropout(s.checkpoint), bs=10*len(df), seed=0))
    after = []
    for f in (trainer, blurlike):
        run(f, lambda *_: {}, s, df)
        after.append({k: v.detach().cpu().clone() for k,v in s.model.named_parameters()})
    apart = max((a - after[1][k]).abs().max().item() for k,a in after[0].items())
    report(pd.DataFrame([{'steps': str(s.epochs), 'largest difference between weights': f'{apart:.1e}'}]), df, 1)

def side_by_side(
    trainer:pd.DataFrame, # A row a seed
    blurlike:pd.DataFrame, # The like
) -> pd.DataFrame: # A row a measure
    "Means and ranges, their difference, and whether it is within the spread of the seeds"
    out = []
    for k in trainer:
        a,b = trainer[k],blurlike[k]
        row = dict(measure=k, Trainer=_with_range(a), blurlike=_with_range(b), difference=f'{b.mean()-a.mean():+.4g}', verdict='')
        if not k.startswith('seconds'):
            spread,better = max(a.max()-a.min(), b.max()-b.min()),(a.mean()-b.mean() if k in FEWER else b.mean()-a.mean())
            row['verdict'] = 'no' if better < -spread else 'yes'
        out.append(row)
    return pd.DataFrame(out).rename(columns={'verdict': 'not below by more than the spread'})

def _with_range(o): return f'{o.mean():.4g} ({o.min():.4g} to {o.max():.4g})'

def report(
    table:pd.DataFrame, # From `side_by_side`
    df:pd.DataFrame, # The rows
    seeds:int, # How many runs a side
):
    "Print the table as markdown, with the command that made it"
    n = int(df.is_valid.sum())
    print(f"\n`python {' '.join([_short(sys.argv[0]), *sys.argv[1:]])}`\n\n{len(df)-n} rows to train on, {n} to validate on; {f'means of {seeds} seeds (and their range)' if seeds > 1 else 'one seed'}; "
          f"{torch.get_num_threads()} threads, {'cuda' if torch.cuda.is_available() else 'cpu'}.\n")
    cells = [list(table), ['---']*table.shape[1], *table.to_numpy().tolist()]
    print('\n'.join(f"| {' | '.join(o)} |" for o in cells))

def _short(path):
    "The path from the repository's root on"
    root = Path(__file__).resolve().parents[2]
    return str(Path(path).resolve().relative_to(root)) if Path(path).resolve().is_relative_to(root) else path
