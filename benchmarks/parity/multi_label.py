"Compare Trainer and hf_learner on multi-label classification"
import numpy as np
from common import compare, read_rows, train_blurlike, train_trainer, train_valid
from fastcore.meta import delegates
from fastcore.script import call_parse
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

from blurlike.all import HFTextDataLoaders, hf_learner


def vocab(df): return sorted({o for cell in df.label for o in cell})

def trainer_side(s, df):
    "Train with `Trainer` and return the set of labels of each validation row"
    tokenizer = AutoTokenizer.from_pretrained(s.checkpoint)
    names = vocab(df)
    def encode(rows):
        enc = tokenizer(rows['text'], truncation=True, max_length=s.max_length)
        return enc | {'labels': [[float(o in cell) for o in names] for cell in rows['label']]}
    train,valid = (o.map(encode, batched=True, remove_columns=o.column_names) for o in train_valid(df))
    set_seed(s.seed) # for the same new weights on both sides
    model = AutoModelForSequenceClassification.from_pretrained(s.checkpoint, num_labels=len(names),
                                                              id2label=dict(enumerate(names)),
                                                              problem_type='multi_label_classification')
    trainer = train_trainer(s, model, train, DataCollatorWithPadding(tokenizer))
    given = trainer.predict(valid).predictions > 0 # a logit above 0 is a probability above 0.5
    return [{names[i] for i in np.flatnonzero(o)} for o in given]

def blurlike_side(s, df):
    "Train with `hf_learner` and return the same"
    dls = HFTextDataLoaders.from_df(df, s.checkpoint, text_col='text', label_col='label',
                                    task='multi-label-classification', valid_col='is_valid',
                                    bs=s.bs, max_length=s.max_length, seed=s.seed)
    set_seed(s.seed)
    learn = train_blurlike(s, hf_learner(dls, metrics=[]))
    return [set(o['labels']) for o in learn.hf_predict(df[df.is_valid].text)]

def scores(valid, preds):
    "Return micro and macro F1, and the share of rows whose labels are all correct"
    binary = MultiLabelBinarizer(classes=vocab(valid))
    truth,pred = binary.fit_transform(valid.label),binary.transform([o & set(binary.classes) for o in preds])
    f1 = {f'{o} F1': f1_score(truth, pred, average=o, zero_division=0) for o in ('micro', 'macro')}
    return f1 | {'exact match': float((truth==pred).all(1).mean())}

def kinds(tags):
    "Return the entity types in a list of tags such as B-PER"
    return sorted({o.partition('-')[2] for o in tags if o!='O'})

def with_enough(cells, n):
    "Remove the labels that occur in fewer than `n` of the `cells`"
    counts = cells.explode().value_counts()
    return cells.map(lambda o: [i for i in o if counts[i] >= n])

@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # Path of a CSV file
    text_col:str='text', # The column of texts; with --from-tags, of lists of words
    label_col:str='label', # The column of lists of labels; with --from-tags, of lists of tags such as B-PER
    from_tags:bool=False, # Use the entity types of a sentence as its labels
    min_count:int=30, # Remove labels that occur in fewer rows
    **kwargs
):
    "Train multi-label classification with transformers.Trainer and with blurlike"
    df = read_rows(csv, [text_col, label_col], lists=(text_col, label_col) if from_tags else (label_col,))
    df.columns = ['text', 'label']
    if from_tags: df = df.assign(text=df.text.map(' '.join), label=df.label.map(kinds))
    df['label'] = with_enough(df.label, min_count)
    compare(df, trainer_side, blurlike_side, scores, **kwargs)
