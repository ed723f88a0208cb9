"""Training: one epoch of MiniLM on the same rows, with the same batch size, gradient clipping and linear learning
rate schedule.

The bare loop is the reference: plain PyTorch with fused AdamW, on texts tokenized and sorted by length in advance.
`Trainer` and `hf_learner` show progress as they do by default, and `Trainer` saves no checkpoints. `hf_learner` uses
`fit_linear`, which has the schedule of `Trainer`, and one more run uses `fit_one_cycle` to show what that schedule
changes within an epoch. Ratios count training alone. `preparation` is the time before it: tokenizing for the bare
loop and `Trainer`; for `hf_learner`, making the `DataLoaders`, which tokenizes the texts, and the learner. All
accuracies are computed by the same function on the same held-out rows, as the mean over the rounds; each round has
its own seed. `bf16` is measured where the hardware has its arithmetic; elsewhere fp32 takes its part."""
import tempfile
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from fastai.torch_core import set_seed
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from blurlike.all import HFTextDataLoaders, hf_learner, minilm_checkpoint

from .common import (
    alternate,
    by_device,
    device,
    figure_row,
    ideal_batches,
    ideal_probs,
    medians,
    native_precisions,
    ratio_row,
    reviews,
    timed,
)

LABELS = ['negative', 'positive']

# --- Contestants: each one prepares its data and returns a function that trains

def length_batches(
    s, # From `settings`
    seed:int, # Seed of the order
) -> list[tuple]: # Inputs and labels
    "Encode batches of texts of similar length, in random order"
    rng = np.random.default_rng(seed)
    enc = s.tokenizer(s.train.text.tolist(), truncation=True, max_length=s.max_length)
    labels,order = torch.tensor(s.train.labels.to_numpy()),rng.permutation(len(s.train))
    order = order[np.argsort([len(enc['input_ids'][i]) for i in order], kind='stable')]
    idxs = [order[i:i+s.bs] for i in range(0, len(order), s.bs)]
    batch = lambda o: s.tokenizer.pad({k: [v[i] for i in o] for k,v in enc.items()}, return_tensors='pt').to(device())
    return [(batch(idxs[i]), labels[idxs[i]].to(device())) for i in rng.permutation(len(idxs))]

def adamw_linear(
    model, # The model to train
    lr:float, # The initial learning rate
    steps:int, # Number of steps
) -> tuple: # An optimizer and a scheduler
    "Return fused AdamW with weight decay for matrices only, and a linear schedule from `lr` to zero"
    groups = [dict(params=[p for p in model.parameters() if p.ndim > 1], weight_decay=0.01),
              dict(params=[p for p in model.parameters() if p.ndim < 2], weight_decay=0.)]
    opt = torch.optim.AdamW(groups, lr, fused=True)
    return opt,torch.optim.lr_scheduler.LinearLR(opt, 1., 0., steps)

def train_bare(
    model, # The model to train
    batches, # Iterable of inputs and labels
    lr:float, # The initial learning rate
    steps:int, # Number of batches
    precision:str='fp32', # "fp32" or "bf16"
):
    "Train with a minimal PyTorch loop"
    model.train()
    opt,sched = adamw_linear(model, lr, steps)
    for x,y in batches:
        with torch.autocast(device().type, torch.bfloat16, enabled=precision=='bf16'): logits = model(**x).logits
        torch.nn.functional.cross_entropy(logits.float(), y).backward()
        clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        sched.step()
        opt.zero_grad()

def bare(s, model, seed, precision):
    "Prepare the bare loop"
    batches = length_batches(s, seed)
    return partial(train_bare, model, batches, s.lr, len(batches), precision)

def trainer(s, model, seed, **best):
    "Prepare `transformers.Trainer`; `best` overrides its default arguments"
    encode = lambda o: s.tokenizer(o['text'], truncation=True, max_length=s.max_length)
    ds = Dataset.from_pandas(s.train[['text', 'labels']], preserve_index=False)
    ds = ds.map(encode, batched=True, remove_columns='text')
    args = TrainingArguments(s.folder, per_device_train_batch_size=s.bs, num_train_epochs=1, learning_rate=s.lr,
                             seed=seed, report_to='none', save_strategy='no', **best)
    return Trainer(model, args, train_dataset=ds, processing_class=s.tokenizer).train

def learner(s, model, seed, precision, fit='fit_linear'):
    "Prepare `hf_learner`, which also validates on one batch, because `DataLoaders` need a validation set"
    dls = HFTextDataLoaders.from_df(s.df, minilm_checkpoint(), valid_col='is_valid', bs=s.bs, max_length=s.max_length,
                                    seed=seed)
    return partial(getattr(hf_learner(dls, model, precision=precision), fit), 1, s.lr)

def contestants() -> dict:
    "Return the contestants"
    fast = native_precisions()[-1]
    best = dict(train_sampling_strategy='group_by_length', optim='adamw_torch_fused', bf16=fast=='bf16',
                use_cpu=device().type=='cpu')
    return {
        **{f'bare loop, {o}': partial(bare, precision=o) for o in native_precisions()},
        'Trainer, defaults': trainer,
        'Trainer, best': partial(trainer, **best),
        **{f'hf_learner, {o}': partial(learner, precision=o) for o in native_precisions()},
        f'hf_learner, {fast}, fit_one_cycle': partial(learner, precision=fast, fit='fit_one_cycle')}

# --- The comparison

def settings(
    kind:str, # See `reviews`
    rows:int, # Number of training rows
    held_out:int, # Number of rows to compute accuracy on
    folder:str, # Output folder of `Trainer`
    bs:int=16, # Rows per batch
    lr:float=2e-4, # The initial learning rate
    max_length:int=128, # Maximum number of tokens per text
) -> SimpleNamespace:
    "Return the rows, the model and the hyperparameters that all contestants share"
    df = reviews(kind, rows + bs + held_out)
    df['labels'] = df.label.map(LABELS.index)
    df['is_valid'] = df.index >= rows
    set_seed(0)
    names = dict(id2label=dict(enumerate(LABELS)), label2id={o: i for i,o in enumerate(LABELS)})
    model = AutoModelForSequenceClassification.from_pretrained(minilm_checkpoint(), **names)
    tokenizer,held = AutoTokenizer.from_pretrained(minilm_checkpoint()),df[rows+bs:]
    return SimpleNamespace(
        df=df[:rows+bs], train=df[:rows], model=model, tokenizer=tokenizer, bs=bs, lr=lr, max_length=max_length,
        folder=folder, labels=torch.tensor(held.labels.to_numpy()),
        held_out=ideal_batches(tokenizer, held.text.tolist(), max_length))

def accuracy(
    s, # From `settings`
    model, # A trained model
) -> float:
    "Return the accuracy of `model`'s weights on the held-out rows, computed with a separate copy of the model"
    judge = deepcopy(s.model).to(device()).eval()
    judge.load_state_dict(model.state_dict())
    return (ideal_probs(judge, s.held_out).argmax(-1)==s.labels).float().mean().item()

def epoch(
    contestant, # One of `contestants`
    s, # From `settings`
    i:int, # The round
) -> dict: # Numbers
    "Train for one epoch, and count the padding in the model's inputs"
    model,masks = deepcopy(s.model).to(device()),[]
    set_seed(i)
    preparation,train = timed(contestant, s, model, i)
    def keep_mask(module, _, kwargs):
        if module.training: masks.append(kwargs['attention_mask'])
    watch = model.base_model.register_forward_pre_hook(keep_mask, with_kwargs=True)
    seconds,_ = timed(train)
    watch.remove()
    padding = 1 - sum(o.sum().item() for o in masks)/sum(o.numel() for o in masks)
    return {'examples/s': len(s.train)/seconds, 'preparation, s': preparation, 'padding, %': 100*padding,
            'accuracy': accuracy(s, model)}

def figures(
    results:dict, # From `alternate`
) -> list[dict]:
    "Return the comparisons"
    name = f'hf_learner, {native_precisions()[-1]}'
    ours = results[name]
    acc = {k: o.accuracy.mean() for k,o in results.items()}
    def row(over, under, target='', **also):
        return ratio_row(f'{over} over {under}', results[over]['examples/s'], results[under]['examples/s'], target,
                         accuracy=f'{acc[over]:.3f} / {acc[under]:.3f}', **also)
    close = {'accuracy no more than 0.01 below': acc[name] >= acc['Trainer, defaults'] - 0.01}
    beside = {'examples/s': f"{ours['examples/s'].median():.4g}", 'accuracy': f"{acc[name]:.3f}"}
    slower = [row(f'hf_learner, {o}', 'Trainer, defaults') for o in native_precisions()[:-1]]
    return [row(name, 'Trainer, defaults', by_device('>= 2.0', ''), also=by_device(close, None)), *slower,
            row(name, 'Trainer, best', by_device('>= 1.05', '>= 1.1')),
            *(row(f'hf_learner, {o}', f'bare loop, {o}', '>= 0.97') for o in native_precisions()),
            figure_row('padding of hf_learner, %', ours['padding, %'], **beside)]

def compare(kind, rows, held_out, rounds):
    "Run all contestants on one kind of texts"
    with tempfile.TemporaryDirectory() as folder:
        tiny,s = settings(kind, 32, 32, folder),settings(kind, rows, held_out, folder)
        alternate({k: partial(epoch, f, tiny) for k,f in contestants().items()}, 1, warmup=0)
        return alternate({k: partial(epoch, f, s) for k,f in contestants().items()}, rounds, warmup=0)

def measure(
    rounds:int, # Number of rounds; three at most, since a round takes five minutes at full size
    short:int, # Number of sentences to train on
    mixed:int, # Number of sentences and reviews to train on
    held_out:int, # Number of rows to compute accuracy on
) -> dict: # Captions mapped to rows
    "Return the tables of this section"
    tables = {}
    for kind,rows in dict(short=short, mixed=mixed).items():
        results = compare(kind, rows, held_out, min(rounds, 3))
        caption = f'{rows} {kind} texts, max_length 128, batches of 16; {held_out} held out.'
        tables |= {caption: figures(results), f'Each contestant, {kind} texts.': medians(results)}
    return tables
