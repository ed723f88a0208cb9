"Compare Trainer and hf_learner on causal language modeling"
from functools import partial

import torch
from common import VOCAB, compare, fresh, read_rows, train_blurlike, train_trainer, train_valid
from fastcore.meta import delegates
from fastcore.script import call_parse
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, GPT2Config, set_seed

from blurlike.all import HFTextDataLoaders, hf_learner


def blocks(tokenizer, texts, length):
    "Concatenate the tokens of all texts and split them into blocks of `length`; the last block can be shorter"
    end = [tokenizer.eos_token_id]*(tokenizer.eos_token is not None) # for tokenizers that add no end-of-text token
    ids = [i for o in tokenizer(list(texts), verbose=False)['input_ids'] for i in (o if o[-1:]==end else o + end)]
    return [ids[i:i+length] for i in range(0, len(ids)-1, length)]

def trainer_side(s, df):
    "Train with `Trainer` on blocks of tokens and return the model and the tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(s.checkpoint)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    train,_ = train_valid(df)
    rows = [{'input_ids': o} for o in blocks(tokenizer, train['text'], s.max_length)]
    set_seed(s.seed)
    model = AutoModelForCausalLM.from_pretrained(s.checkpoint, dtype=torch.float32)
    return train_trainer(s, model, rows, DataCollatorForLanguageModeling(tokenizer, mlm=False)).model,tokenizer

def blurlike_side(s, df):
    "Train with `hf_learner` and return the same"
    dls = HFTextDataLoaders.from_df(df, s.checkpoint, text_col='text', task='causal-lm', valid_col='is_valid',
                                    bs=s.bs, max_length=s.max_length, seed=s.seed)
    set_seed(s.seed)
    return train_blurlike(s, hf_learner(dls, metrics=[])).model,dls.hf_block.hf_tokenizer

def scores(valid, result, length):
    "Return the mean loss per token of the validation texts, in blocks of `length`, and the perplexity"
    model,tokenizer = result
    model.eval()
    total,n = 0.,0
    with torch.inference_mode():
        for o in blocks(tokenizer, valid.text, length):
            ids = torch.tensor([o], device=model.device)
            total,n = total + (len(o)-1)*model(input_ids=ids, labels=ids).loss.item(),n + len(o)-1
    loss = total/n
    return {'loss per token': loss, 'perplexity': float(torch.tensor(loss).exp())}

@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # Path of a CSV file
    text_col:str='text', # The column of texts
    checkpoint:str=None, # A name on the Hub or a local folder; a small GPT-2 with new weights if omitted
    max_length:int=128, # Tokens per block
    **kwargs
):
    "Train a causal language model with transformers.Trainer and with blurlike"
    df = read_rows(csv, [text_col])
    df.columns = ['text']
    checkpoint = checkpoint or fresh(df.text, AutoModelForCausalLM, GPT2Config(
        vocab_size=VOCAB, n_positions=512, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, pad_token_id=1,
        eos_token_id=2))
    compare(df, trainer_side, blurlike_side, partial(scores, length=max_length), checkpoint=checkpoint,
            max_length=max_length, **kwargs)
