"Any number of labels a text: Trainer and hf_learner side by side"
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
    "The set of labels of each validation row, by `Trainer`"
    tokenizer = AutoTokenizer.from_pretrained(s.checkpoint)
    names = vocab(df)
    def encode(rows):
        enc = tokenizer(rows['text'], truncation=True, max_length=s.max_length)
        return enc | {'labels': [[float(o in cell) for o in names] for cell in rows['label']]}
    train,valid = (o.map(encode, batched=True, remove_columns=o.column_names) for o in train_valid(df))
    set_seed(s.seed) # the other side's fresh weights are the same
    model = AutoModelForSequenceClassification.from_pretrained(s.checkpoint, num_labels=len(names), id2label=dict(enumerate(names)),
                                                              problem_type='multi_label_classification')
    trainer = train_trainer(s, model, train, DataCollatorWithPadding(tokenizer))
    given = trainer.predict(valid).predictions > 0 # logits: a probability above a half
    return [{names[i] for i in np.flatnonzero(o)} for o in given]

def blurlike_side(s, df):
    "The same, by `hf_learner`"
    dls = HFTextDataLoaders.from_df(df, s.checkpoint, text_col='text', label_col='label', task='multi-label-classification', valid_col='is_valid',
                                    bs=s.bs, max_length=s.max_length, seed=s.seed)
    set_seed(s.seed)
    learn = train_blurlike(s, hf_learner(dls, metrics=[]))
    return [set(o['labels']) for o in learn.hf_predict(df[df.is_valid].text)]

def scores(valid, preds):
    "F1 over all labels together, and as the mean over the labels; the share of rows with all labels right"
    binary = MultiLabelBinarizer(classes=vocab(valid))
    truth,pred = binary.fit_transform(valid.label),binary.transform([o & set(binary.classes) for o in preds])
    return {'micro F1': f1_score(truth, pred, average='micro', zero_division=0), 'macro F1': f1_score(truth, pred, average='macro', zero_division=0),
            'exact match': float((truth==pred).all(1).mean())}

def kinds(tags):
    "The kinds of entity in a sentence with tags such as B-PER"
    return sorted({o.partition('-')[2] for o in tags if o!='O'})

def with_enough(cells, n):
    "`cells` without the labels that fewer than `n` of them have"
    counts = cells.explode().value_counts()
    return cells.map(lambda o: [i for i in o if counts[i] >= n])

@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # A CSV file
    text_col:str='text', # The column of texts, or with --from-tags of lists of words
    label_col:str='label', # The column of lists of labels, or with --from-tags of lists of tags such as B-PER
    from_tags:bool=False, # Take as a sentence's labels the kinds of entity in it
    min_count:int=30, # Leave out labels that fewer rows have
    **kwargs
):
    "Train on any number of labels a text with transformers.Trainer and with blurlike"
    df = read_rows(csv, [text_col, label_col], lists=(text_col, label_col) if from_tags else (label_col,))
    df.columns = ['text', 'label']
    if from_tags: df = df.assign(text=df.text.map(' '.join), label=df.label.map(kinds))
    df['label'] = with_enough(df.label, min_count)
    compare(df, trainer_side, blurlike_side, scores, **kwargs)
