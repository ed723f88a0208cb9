"Compare Trainer and hf_learner on masked language modeling"
from functools import partial

import torch
from causal_lm import blocks
from common import compare, read_rows, train_blurlike, train_trainer, train_valid
from fastcore.meta import delegates
from fastcore.script import call_parse
from transformers import AutoModelForMaskedLM, AutoTokenizer, DataCollatorForLanguageModeling, set_seed

from blurlike.all import HFTextDataLoaders, hf_learner


def trainer_side(s, df):
    "Train with `Trainer` on blocks of tokens and return the model and the tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(s.checkpoint)
    train,_ = train_valid(df)
    rows = [{'input_ids': o} for o in blocks(tokenizer, train['text'], s.max_length)]
    set_seed(s.seed) # for the same new weights on both sides
    model = AutoModelForMaskedLM.from_pretrained(s.checkpoint, dtype=torch.float32)
    return train_trainer(s, model, rows, DataCollatorForLanguageModeling(tokenizer)).model,tokenizer

def blurlike_side(s, df):
    "Train with `hf_learner` and return the same"
    dls = HFTextDataLoaders.from_df(df, s.checkpoint, text_col='text', task='masked-lm', packing=True,
                                    valid_col='is_valid', bs=s.bs, max_length=s.max_length, seed=s.seed)
    set_seed(s.seed)
    return train_blurlike(s, hf_learner(dls, metrics=[])).model,dls.hf_block.hf_tokenizer

def scores(valid, result, length):
    "Return the mean loss per masked token of the validation texts, the perplexity and the accuracy, with fixed masks"
    model,tokenizer = result
    collate = DataCollatorForLanguageModeling(tokenizer, seed=0)
    batch = collate([{'input_ids': o} for o in blocks(tokenizer, valid.text, length)])
    model.eval()
    loss,right,n = 0.,0,0
    with torch.inference_mode():
        columns = (batch[o].split(8) for o in ('input_ids', 'attention_mask', 'labels'))
        for ids,mask,labels in zip(*columns, strict=True):
            masked = labels!=-100
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits.cpu()
            logits,labels = logits[masked],labels[masked]
            loss += torch.nn.functional.cross_entropy(logits, labels, reduction='sum').item()
            right,n = right + (logits.argmax(-1)==labels).sum().item(),n + len(labels)
    return {'loss per token': loss/n, 'perplexity': float(torch.tensor(loss/n).exp()), 'accuracy': right/n}

@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # Path of a CSV file
    text_col:str='text', # The column of texts
    max_length:int=128, # Tokens per block
    **kwargs
):
    "Train a masked language model with transformers.Trainer and with blurlike"
    df = read_rows(csv, [text_col])
    df.columns = ['text']
    compare(df, trainer_side, blurlike_side, partial(scores, length=max_length), max_length=max_length, **kwargs)
