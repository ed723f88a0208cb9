"Compare Trainer and hf_learner on token classification"
import numpy as np
from common import compare, read_rows, train_blurlike, train_trainer, train_valid
from fastcore.meta import delegates
from fastcore.script import call_parse
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification, set_seed

from blurlike.all import HFTextDataLoaders, hf_learner

NONE = -100 # The label that losses ignore

def word_starts(enc, i):
    "Return the position of the first token of each word of row `i`, and the word's index"
    words = enc.word_ids(i)
    return [(p, w) for p,w in enumerate(words) if w is not None and (p==0 or words[p-1]!=w)]

def trainer_side(s, df):
    "Train with `Trainer` and return the labels of the words of each validation row"
    tokenizer = AutoTokenizer.from_pretrained(s.checkpoint)
    names = vocab(df)
    def encode(rows):
        enc = tokenizer(rows['tokens'], truncation=True, max_length=s.max_length, is_split_into_words=True)
        labels = [[NONE]*len(o) for o in enc['input_ids']]
        for i,tags in enumerate(rows['labels']):
            for place,word in word_starts(enc, i): labels[i][place] = names.index(tags[word])
        return enc | {'labels': labels}
    train,valid = (o.map(encode, batched=True, remove_columns=o.column_names) for o in train_valid(df))
    set_seed(s.seed) # for the same new weights on both sides
    model = AutoModelForTokenClassification.from_pretrained(s.checkpoint, num_labels=len(names),
                                                           id2label=dict(enumerate(names)))
    trainer = train_trainer(s, model, train, DataCollatorForTokenClassification(tokenizer))
    out = trainer.predict(valid)
    best = np.argmax(out.predictions, axis=-1)
    return [[names[i] for i in row[marks!=NONE]] for row,marks in zip(best, out.label_ids, strict=True)]

def blurlike_side(s, df):
    "Train with `hf_learner` and return the same"
    dls = HFTextDataLoaders.from_df(df, s.checkpoint, text_col='tokens', label_col='labels',
                                    task='token-classification', valid_col='is_valid', bs=s.bs,
                                    max_length=s.max_length, vocab=vocab(df), seed=s.seed)
    set_seed(s.seed)
    learn = train_blurlike(s, hf_learner(dls, metrics=[]))
    words = list(df[df.is_valid].tokens)
    return [tags(o, len(w)) for o,w in zip(learn.hf_predict(words), words, strict=True)]

def tags(entities, n):
    "Return a tag for each of `n` words from the entities of `hf_predict`"
    res = ['O']*n
    for o in entities:
        a,b = o['start_word'],o['end_word']
        res[a:b] = [f"B-{o['entity_group']}", *[f"I-{o['entity_group']}"]*(b-a-1)]
    return res

def vocab(df): return sorted({o for cell in df.labels for o in cell})

def scores(valid, preds):
    "Return seqeval's entity F1, precision and recall, and word accuracy; truncated words count as O"
    truth = valid.labels.tolist()
    preds = [(p + ['O']*len(t))[:len(t)] for t,p in zip(truth, preds, strict=True)]
    return {'entity F1': f1_score(truth, preds), 'precision': precision_score(truth, preds, zero_division=0),
            'recall': recall_score(truth, preds), 'accuracy': accuracy_score(truth, preds)}

@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # Path of a CSV file
    tokens_col:str='tokens', # The column of lists of words
    labels_col:str='labels', # The column of lists of tags such as B-PER
    **kwargs
):
    "Train token classification with transformers.Trainer and with blurlike"
    df = read_rows(csv, [tokens_col, labels_col], lists=(tokens_col, labels_col))
    df.columns = ['tokens', 'labels']
    compare(df, trainer_side, blurlike_side, scores, **kwargs)
