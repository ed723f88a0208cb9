"Classification of pairs of texts: Trainer and hf_learner side by side"
from classification import compare_classes
from common import compare
from fastcore.meta import delegates
from fastcore.script import call_parse


@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # A CSV file
    text_col:str='question', # The column of first texts
    pair_col:str='passage', # The column of second texts
    label_col:str='label', # The column of labels
    **kwargs
):
    "Train on a label a pair of texts with transformers.Trainer and with blurlike"
    compare_classes(csv, [text_col, pair_col], label_col, **kwargs)
