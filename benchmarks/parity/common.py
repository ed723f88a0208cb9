"Code that the comparisons share: rows, seeds, training with one schedule for both sides, and the table"
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
WARMUP,WEIGHT_DECAY,MAX_GRAD_NORM = 0.1,0.01,1. # the same on both sides
FEWER = {'loss per token', 'perplexity', 'mean squared error'} # Measures that are better when lower

# --- Rows

def read_rows(
    csv:str, # Path of a CSV file with a header line
    cols:list, # Names of the columns to read
    lists:tuple=(), # Those of `cols` that contain Python lists
) -> pd.DataFrame:
    "Read columns of a CSV file; raises `ValueError` for a missing column or an empty cell"
    df = pd.read_csv(csv, keep_default_na=False)
    for o in cols:
        if o not in df: raise ValueError(f"{csv} has no column {o!r}. Its columns are {', '.join(map(repr, df))}.")
        empty = df[o].astype(str).str.len()==0
        if empty.any(): raise ValueError(f"{csv}: column {o!r} of row {empty.idxmax()} is empty.")
    df = df[list(dict.fromkeys(cols))]
    return df.assign(**{o: df[o].map(literal_eval) for o in lists})

def split_rows(
    df:pd.DataFrame, # All rows
    rows:int, # Number of rows to use; None for all
    valid_pct:float, # Share of the rows to validate on
    seed:int, # Seed of the shuffle
) -> pd.DataFrame: # With a column `is_valid`
    "Shuffle the rows and mark the last ones for validation"
    df = df.sample(min(rows or len(df), len(df)), random_state=seed, ignore_index=True)
    return df.assign(is_valid=df.index >= round(len(df)*(1-valid_pct)))

def train_valid(
    df:pd.DataFrame, # Rows with a column `is_valid`
) -> tuple[Dataset, Dataset]:
    "Return the training rows and the validation rows"
    parts = (df[df.is_valid==o].drop(columns='is_valid') for o in (False, True))
    return tuple(Dataset.from_pandas(o, preserve_index=False) for o in parts)

# --- Training

def trainer_args(
    s, # Settings of the run
    cls=TrainingArguments, # `TrainingArguments` or a subclass
    **kwargs # Passed to `cls`
):
    "Return the arguments of a `Trainer`: AdamW, a linear warmup and a linear decay"
    return cls(
        tempfile.mkdtemp(), num_train_epochs=s.epochs, per_device_train_batch_size=s.bs,
        per_device_eval_batch_size=s.bs,
        learning_rate=s.lr, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM, warmup_steps=WARMUP,
        lr_scheduler_type='linear', train_sampling_strategy=s.sampling, seed=s.seed, report_to='none',
        save_strategy='no', logging_strategy='no', disable_tqdm=True, **kwargs)

def train_trainer(
    s, # Settings of the run
    model, # The model to train
    train_ds, # Tokenized rows
    collator, # Data collator
    cls=Trainer, # `Trainer` or a subclass
    args_cls=TrainingArguments, # `TrainingArguments` or a subclass
    **kwargs # Passed to `args_cls`
): # The trainer
    "Train with `transformers.Trainer`"
    args = trainer_args(s, args_cls, **kwargs)
    trainer = cls(model=model, args=args, train_dataset=train_ds, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    with s.training: trainer.train()
    s.model = trainer.model
    return trainer

def train_blurlike(
    s, # Settings of the run
    learn, # The learner, from `hf_learner`
): # The learner
    "Train a fastai `Learner` with the schedule of `Trainer`, or with `one_cycle` fastai's"
    with s.training, learn.no_bar(), learn.no_logging():
        if s.one_cycle: learn.fit_one_cycle(s.epochs, s.lr, wd=WEIGHT_DECAY)
        else:
            steps = s.epochs*len(learn.dls.train)
            warmup = math.ceil(WARMUP*steps)/steps # a whole number of steps, as in `Trainer`
            learn.fit_linear(s.epochs, s.lr, warmup, WEIGHT_DECAY)
    s.model = learn.model
    return learn

class Stopwatch:
    "A context manager that adds up wall-clock seconds and CPU seconds of this process"
    def __init__(self): self.seconds = self.cpu = 0.
    def __enter__(self): self.start = time.perf_counter(),time.process_time()
    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self.start[0]
        self.cpu += time.process_time() - self.start[1]

# --- A checkpoint of our own

VOCAB = 4000 # Maximum vocabulary size of the tokenizers that `fresh` trains

def fresh(
    texts, # Texts to train the tokenizer on
    auto_model, # An Auto class
    config, # Configuration of the model, with `vocab_size=VOCAB` and BART's special tokens: <s> 0, <pad> 1, </s> 2
    ends:bool=False, # Whether the tokenizer adds <s> and </s> around a text
) -> str: # A folder
    "Save a small model with new weights, and a tokenizer trained on `texts`"
    tok = Tokenizer(models.BPE(unk_token='<unk>'))
    tok.pre_tokenizer,tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=['<s>', '<pad>', '</s>', '<unk>'],
                                  show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(texts, trainer)
    if ends:
        tok.post_processor = processors.TemplateProcessing(
            single='<s> $A </s>', pair='<s> $A </s> $B </s>', special_tokens=[('<s>', 0), ('</s>', 2)])
    folder = tempfile.mkdtemp()
    PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token='<s>', pad_token='<pad>', eos_token='</s>', unk_token='<unk>',
        model_max_length=512, model_input_names=['input_ids', 'attention_mask']).save_pretrained(folder)
    set_seed(0)
    auto_model.from_config(config).save_pretrained(folder)
    return folder

# --- The comparison

def compare(
    df:pd.DataFrame, # All rows
    trainer, # Function that takes settings and rows, trains with `Trainer` and returns a result for `scores`
    blurlike, # Function that does the same with blurlike
    scores, # Function that takes the validation rows and a side's result and returns a dict of numbers
    checkpoint:str=None, # A name on the Hub or a local folder; None for the bundled MiniLM
    epochs:int=3, # Number of epochs
    bs:int=16, # Rows per batch
    lr:float=5e-5, # The highest learning rate
    max_length:int=128, # Maximum number of tokens per text
    seeds:int=3, # Number of runs per side
    rows:int=None, # Number of rows to use; all if omitted
    valid_pct:float=0.3, # Share of the rows to validate on
    sampling:str='random', # Sampling of Trainer: "random", or "group_by_length" for batches like those of blurlike
    one_cycle:bool=False, # Train blurlike with fastai's one-cycle schedule
    exact:bool=False, # Instead, train without dropout on one batch of all rows, and compare the weights
    **more # Further settings for both sides
) -> pd.DataFrame: # One row per measure
    "Train both sides with each seed, alternating, and print the table"
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    df = split_rows(df, rows, valid_pct, seed=0)
    s = SimpleNamespace(checkpoint=str(checkpoint or minilm_checkpoint()), epochs=epochs, bs=bs, lr=lr,
                        max_length=max_length, sampling=sampling, one_cycle=one_cycle, **more)
    if exact: return compare_weights(s, df, trainer, blurlike)
    results = {o: [] for o in SIDES}
    for seed in range(seeds):
        for side,f in list(zip(SIDES, (trainer, blurlike), strict=True))[::-1 if seed%2 else 1]:
            results[side].append(run(f, scores, SimpleNamespace(**vars(s), seed=seed), df))
            numbers = ', '.join(f'{k} {v:.4g}' for k,v in results[side][-1].items())
            print(f"seed {seed}, {side}: {numbers}", file=sys.stderr)
    table = side_by_side(*(pd.DataFrame(results[o]) for o in SIDES))
    report(table, df, seeds)
    return table

def run(
    side, # Function that trains one side
    scores, # See `compare`
    s, # Settings of the run
    df:pd.DataFrame, # All rows
) -> dict: # Measures and seconds
    "Train and score one side"
    gc.collect()
    set_seed(s.seed)
    s.training,whole = Stopwatch(),Stopwatch()
    with whole: result = side(s, df)
    seconds = {'seconds in total': whole.seconds, 'seconds of training': s.training.seconds,
               'seconds of training, CPU': s.training.cpu}
    return scores(df[df.is_valid], result) | seconds

def without_dropout(
    checkpoint:str, # A name on the Hub or a local folder
) -> str: # A folder
    "Copy `checkpoint` and set every dropout in its configuration to 0"
    source = checkpoint if Path(checkpoint).is_dir() else snapshot_download(checkpoint)
    folder = Path(shutil.copytree(source, tempfile.mkdtemp(), dirs_exist_ok=True))
    config = json.loads((folder/'config.json').read_text())
    config |= {k: 0. for k,v in config.items() if 'drop' in k and isinstance(v, float)}
    (folder/'config.json').write_text(json.dumps(config))
    return str(folder)

def compare_weights(s, df, trainer, blurlike):
    "Train both sides without randomness, and print the largest difference between their weights"
    s = SimpleNamespace(**vars(s) | dict(checkpoint=without_dropout(s.checkpoint), bs=10*len(df), seed=0))
    after = []
    for f in (trainer, blurlike):
        run(f, lambda *_: {}, s, df)
        after.append({k: v.detach().cpu().clone() for k,v in s.model.named_parameters()})
    apart = max((a - after[1][k]).abs().max().item() for k,a in after[0].items())
    table = pd.DataFrame([{'steps': str(s.epochs), 'largest difference between weights': f'{apart:.1e}'}])
    report(table, df, 1)

def side_by_side(
    trainer:pd.DataFrame, # Results of `Trainer`, one row per seed
    blurlike:pd.DataFrame, # Results of blurlike, one row per seed
) -> pd.DataFrame: # One row per measure
    "Return means, ranges and differences, and whether blurlike is within the spread of the seeds"
    out = []
    for k in trainer:
        a,b = trainer[k],blurlike[k]
        apart = b.mean() - a.mean()
        row = dict(measure=k, Trainer=_with_range(a), blurlike=_with_range(b), difference=f'{apart:+.4g}', verdict='')
        if not k.startswith('seconds'):
            spread,better = max(a.max()-a.min(), b.max()-b.min()),(-apart if k in FEWER else apart)
            row['verdict'] = 'no' if better < -spread else 'yes'
        out.append(row)
    return pd.DataFrame(out).rename(columns={'verdict': 'as good, within the spread'})

def _with_range(o): return f'{o.mean():.4g} ({o.min():.4g} to {o.max():.4g})'

def report(
    table:pd.DataFrame, # From `side_by_side`
    df:pd.DataFrame, # All rows
    seeds:int, # Number of runs per side
):
    "Print the table as Markdown, with the command that reproduces it"
    n = int(df.is_valid.sum())
    runs = f'mean (and range) of {seeds} seeds' if seeds > 1 else 'one seed'
    print(f"\n`python {' '.join([_short(sys.argv[0]), *sys.argv[1:]])}`\n")
    print(f"{len(df)-n} training rows, {n} validation rows; {runs}; {torch.get_num_threads()} threads, "
          f"{'cuda' if torch.cuda.is_available() else 'cpu'}.\n")
    cells = [list(table), ['---']*table.shape[1], *table.to_numpy().tolist()]
    print('\n'.join(f"| {' | '.join(o)} |" for o in cells))

def _short(path):
    "Return the path relative to the root of the repository"
    root = Path(__file__).resolve().parents[2]
    return str(Path(path).resolve().relative_to(root)) if Path(path).resolve().is_relative_to(root) else path
